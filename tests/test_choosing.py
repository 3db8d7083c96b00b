"""Rows that are chosen by the disagreement of student and teacher."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from toys import batches, bert
from zsaq import KL, Batch, LogitMSE, Pair, QuantConfig, repeat
from zsaq.language.sam_sga import student_of
from zsaq.train.choosing import Chosen

TEACHER = bert()
STUDENT = student_of(TEACHER, QuantConfig.parse("w2a8"))


def stream(widths: tuple[int, ...] = (5, 9, 7), size: int = 4) -> Iterator[Batch]:
    """Rows of one batch are as wide, but for the last, which ends two before."""
    rng = torch.Generator().manual_seed(1)
    while True:
        for width in widths:
            mask = torch.ones(size, width, dtype=torch.int64)
            mask[-1, -2:] = 0
            yield {"input_ids": torch.randint(2, 96, (size, width), generator=rng), "attention_mask": mask}


def singly(drawn: list[Batch]) -> list[tuple[float, list[int]]]:
    """Each row alone: its divergence and its tokens, largest first."""
    rows = []
    for batch in drawn:
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            kept = ids[mask.bool()][None]
            with torch.no_grad():
                own = KL()(Pair(TEACHER, STUDENT, {"input_ids": kept, "attention_mask": torch.ones_like(kept)}))
            rows.append((float(own), kept[0].tolist()))
    return sorted(rows, reverse=True)


def tokens(batch: Batch) -> list[list[int]]:
    return [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]


def test_the_rows_of_the_largest_divergence_are_kept() -> None:
    plain, chosen = stream(), Chosen(stream(), TEACHER, STUDENT, KL(), 3)
    for _ in range(3):
        batch = next(chosen)
        assert tokens(batch) == [row for _, row in singly([next(plain) for _ in range(3)])[:4]]
        assert batch["attention_mask"].any(0).all(), "as wide as the widest row"


def test_the_less_fluent_half_is_left_out_and_no_model_is_shown_it() -> None:
    def told() -> Iterator[Batch]:
        for batch in stream():
            yield batch | {"fluency": batch["input_ids"][:, 0].float()}

    kept = next(Chosen(told(), TEACHER, STUDENT, KL(), 3))
    drawn = [batch for batch, _ in zip(stream(), range(3), strict=False)]
    likely = sorted(row[0] for each in drawn for row in tokens(each))
    middle = likely[(len(likely) - 1) // 2]
    wanted = [row for _, row in singly(drawn) if row[0] >= middle][:4]
    assert tokens(kept) == wanted and "fluency" not in kept


def test_what_is_chosen_follows_the_student() -> None:
    other: Any = student_of(bert(), QuantConfig.parse("w2a8"))
    with torch.no_grad():
        for parameter in other.classifier.parameters():
            parameter.add_(torch.randn_like(parameter))
    first, second = (next(Chosen(stream(), TEACHER, student, KL(), 3)) for student in (STUDENT, other))
    assert tokens(first) != tokens(second)


def test_the_place_is_the_streams() -> None:
    chosen = Chosen(stream(), TEACHER, STUDENT, KL(), 2)
    next(chosen)
    place = chosen.state_dict()
    rest = Chosen(stream(), TEACHER, STUDENT, KL(), 2)
    rest.load_state_dict(place)
    assert tokens(next(rest)) == tokens(next(chosen))


def test_batches_without_masks_and_a_count_that_chooses_nothing() -> None:
    bare = [{"input_ids": batch["input_ids"]} for batch in batches(4)]
    assert len(next(Chosen(repeat(bare), TEACHER, STUDENT, LogitMSE(), 4))["input_ids"]) == len(bare[0]["input_ids"])
    with pytest.raises(ValueError, match="times is 1; give at least 2"):
        Chosen(stream(), TEACHER, STUDENT, KL(), 1)
