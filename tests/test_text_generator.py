import math
import re
from itertools import islice

import pytest
import torch

from language_toys import text_generator
from zsaq.train.pair import Batch


@pytest.mark.parametrize("text_pair", [False, True])
def test_batches_are_texts_of_the_teacher_without_end(text_pair: bool) -> None:
    one, _ = text_generator(text_pair=text_pair)
    same, _ = text_generator(text_pair=text_pair)
    for batch, again in islice(zip(one, same, strict=True), 8):
        assert set(batch) == {"input_ids", "token_type_ids", "attention_mask"}
        assert all(torch.equal(batch[key], again[key]) for key in batch)
        ids, mask = batch["input_ids"], batch["attention_mask"].bool()
        assert len(ids) == 8 and (ids[:, 0] == 3).all() and ((ids == 4).sum(1) == 1 + text_pair).all()
        assert (ids[mask] >= 2).all() and not torch.isin(ids[:, 1:], torch.tensor([1, 3, 5])).any()
    assert len(one.buffer) == 3 * 24


def contents(batches: list[Batch]) -> list[tuple[int, ...]]:
    """The rows' ids without special tokens, sorted."""
    return sorted(
        tuple(ids[1 : n - 1])
        for batch in batches
        for ids, n in zip(batch["input_ids"].tolist(), batch["attention_mask"].sum(1).tolist(), strict=True)
    )


def test_every_text_is_used_once_until_the_generator_has_climbed() -> None:
    mixed, _ = text_generator(fresh=0.5, capacity=30)
    for _ in range(2):
        batches = list(islice(mixed, 3))
        assert contents(batches) == sorted(map(tuple, mixed.translated.lists())) and len(mixed.translated) == 24
    mixed.replays = True
    before = [tuple(row) for row in mixed.buffer]
    batches = contents(list(islice(mixed, 3)))
    newest = [tuple(row) for row in mixed.translated.lists()]
    assert len(batches) == 24 and len(newest) == 12 and [tuple(r) for r in mixed.buffer] == [*before, *newest][-30:]
    for row in newest:
        batches.remove(row)
    assert len(batches) == 12 and set(batches) <= set(before)


@pytest.mark.parametrize(
    "options",
    [
        {"fresh": 1.5}, {"fresh": 0.0}, {"fresh": math.nan}, {"fresh": "all"}, {"refresh": 0}, {"refresh": 1.5},
        {"batch_size": 2.5}, {"batch_size": True}, {"capacity": 23}, {"capacity": math.nan}, {"capacity": 1e9},
    ],
    ids=str,
)  # fmt: skip
def test_a_share_or_a_buffer_that_cannot_be(options) -> None:
    with pytest.raises(ValueError, match=r"fresh is .* capacity"):
        text_generator(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": math.nan}, {"temperature": math.inf}, {"temperature": "1"}, {"length": (4, 4.5)},
        {"length": True}, {"length": (4,)}, {"length": "4"}, {"greedy": (0, 1.5)}, {"greedy": 0},
        {"uniform_start": 1}, {"chat": math.nan}, {"chat": "yes"},
    ],
    ids=str,
)  # fmt: skip
def test_a_style_that_cannot_be(options) -> None:
    name, value = next(iter(options.items()))
    with pytest.raises(ValueError, match=re.escape(f"{name} {value!r}" if name == "uniform_start" else f"{name} is")):
        text_generator(**options)
