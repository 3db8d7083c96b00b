"""Scores that no guessing would give: the sign of labels that stand in another order than the model's."""

import math
from typing import Final

RARE: Final = 1e-3  # how seldom guessing may do as badly
DEVIATIONS: Final = 3.09  # of a normal variable, beyond which that is


def below_chance(accuracy: float, samples: int, classes: int) -> str | None:
    """A note where guessing one of `classes` at random would get as few of `samples` right less than once in 1,000."""
    hits = round(accuracy * samples)
    if classes < 2 or hits * classes >= samples:
        return None
    wrong, right = math.log1p(-1 / classes), -math.log(classes)
    total = math.lgamma(samples + 1)
    chance = sum(
        math.exp(total - math.lgamma(k + 1) - math.lgamma(samples - k + 1) + k * right + (samples - k) * wrong)
        for k in range(hits + 1)
    )
    if chance >= RARE:
        return None
    return (
        f"the score is below chance: {100 * accuracy:.2f} % of {samples} samples, where guessing gets "
        f"{100 / classes:.2f} %: the labels may stand in another order than the model's outputs, or the model is broken"
    )


def below_zero(name: str, correlation: float, samples: int) -> str | None:
    """The same for a correlation, of which guessing gets 0."""
    if correlation * math.sqrt(max(samples - 1, 0)) > -DEVIATIONS:
        return None
    return (
        f"the score is below chance: {name} is {correlation:.4f} on {samples} samples, where guessing gets 0: the "
        "labels may stand in another order than the model's outputs, or the model is broken"
    )


def worse_than_uniform(perplexity: float, vocabulary: int) -> str | None:
    """A note where the model is more perplexed, by a tenth, than one that holds all tokens for equally likely."""
    if perplexity < 1.1 * vocabulary:
        return None
    return (
        f"the score is below chance: a perplexity of {perplexity:.4g}, where guessing one of the {vocabulary} tokens "
        f"gets {vocabulary}: the tokenizer may be another model's, or the model is broken"
    )
