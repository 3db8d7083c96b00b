"""AdaSG's losses from the formulas, image by image, in Python's floats."""

import math


def entropy(logits: list[float]) -> float:
    top = max(logits)
    total = sum(math.exp(z - top) for z in logits)
    shares = [math.exp(z - top) / total for z in logits]
    return -sum(p * math.log(p) for p in shares if p > 0)


def cross_entropy(logits: list[float], label: int) -> float:
    top = max(logits)
    return math.log(sum(math.exp(z - top) for z in logits)) + top - logits[label]


def student_loss(teacher: list[list[float]], student: list[list[float]], temperature: float) -> float:
    """-mean_i T^2 H(softmax((P_i - S_i) / T))."""
    values = [
        temperature**2 * entropy([(a - b) / temperature for a, b in zip(p, s, strict=True)])
        for p, s in zip(teacher, student, strict=True)
    ]
    return -sum(values) / len(values)


def generator_loss(
    teacher: list[list[float]],
    student: list[list[float]],
    labels: list[int],
    margins: tuple[float, float],
    disagree: float,
    agree: float,
) -> float:
    """Margins on the normalised entropy of softmax(P - S), and both cross-entropies; without BatchNorm statistics."""
    n, classes = len(labels), len(teacher[0])
    apart = [[a - b for a, b in zip(p, s, strict=True)] for p, s in zip(teacher, student, strict=True)]
    joint = [[a + b for a, b in zip(p, s, strict=True)] for p, s in zip(teacher, student, strict=True)]
    h = [entropy(row) for row in apart]
    least = min(h)
    shares = [(value - least) / (math.log(classes) - least) for value in h]
    margin = sum(max(margins[0] - x, 0) + max(x - margins[1], 0) for x in shares) / n
    ds = sum(cross_entropy(row, y) for row, y in zip(apart, labels, strict=True)) / n
    as_ = sum(cross_entropy(row, y) for row, y in zip(joint, labels, strict=True)) / n
    return margin + disagree * ds + agree * as_
