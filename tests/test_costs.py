"""What a run will cost, and what is told where a student of a size came no nearer."""

from typing import Any

import pytest

import zsaq
from language_toys import bert, bpe, opt, wordpiece
from zsaq import Loop, QuantConfig
from zsaq.language.costs import Cost
from zsaq.language.job import TextJob
from zsaq.language.nearness import POOR, Nearness, remedy
from zsaq.language.size import Size
from zsaq.method import Budget


def test_what_it_costs_follows_the_counts() -> None:
    job = TextJob.of(opt(bpe()), bpe(), max_length=16)
    method = zsaq.methods()["language"]["gptq-qat"]
    few, many = (
        Cost.of(job, Budget.of(method, "light", {"calibration": 10 * n, "steps": 1000 * n}), Loop()) for n in (1, 1000)
    )
    assert few is not None and many is not None and 0 < few.seconds < many.seconds and few.bytes > 0
    assert Cost.of(job, Budget.of(zsaq.methods()["language"]["rtn"]), Loop()) is None
    assert Cost.of(TextJob.of(bert(wordpiece()), wordpiece()), Budget.of(method), Loop()) is None


@pytest.mark.parametrize(
    ("changed", "times"),
    [({"accumulate": 4}, 4.0), ({"accumulate": 3, "recompute": True}, 3 * 7.5 / 6.5), ({"rho": 0.16}, 11.5 / 6.5)],
)
def test_what_steps_cost_follows_the_loop_and_sam(
    changed: dict[str, Any], times: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zsaq.language.costs.seconds_a_token", lambda job: 1e-3)
    job, method = TextJob.of(opt(bpe()), bpe(), max_length=16), zsaq.methods()["language"]["zsaq"]
    given = {"rho": changed.pop("rho", 0.0), "sam_share": 1.0, "steps": 50}
    plain = Cost.of(job, Budget.of(method, "light", given | {"rho": 0.0}), Loop())
    other = Cost.of(job, Budget.of(method, "light", given), Loop(**changed))
    assert plain is not None and other is not None
    assert other.seconds == pytest.approx(times * plain.seconds)


def test_memory_that_a_loop_saves_is_in_the_estimate() -> None:
    job, budget = TextJob.of(opt(bpe()), bpe()), Budget.of(zsaq.methods()["language"]["llm-qat"])
    plain, *less = (Cost.of(job, budget, loop) for loop in (Loop(), Loop(recompute=True), Loop(eight_bit=True)))
    assert plain and all(cost and cost.bytes <= plain.bytes for cost in less)


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (Size(3.2), ("than 3.2 would", "groups of 32 (3.2g32)")),
        (Size(100, True, 8, 64, True), ("than 100MBa8sg64 would", "(100MBa8sg32)", "inputs in floats (100MBg64)")),
        (Size(2.5, group=32), ("than 2.5g32 would", "would effort='best'")),
    ],
)
def test_what_would_bring_a_student_of_a_size_nearer(size: Size, said: tuple[str, ...]) -> None:
    config, far = QuantConfig(zsaq.Grid(4, per=64)), Nearness(1.2, POOR - 0.1, 100)
    advice = remedy(config, far, size)
    assert advice is not None and all(part in advice for part in said) and "w4" not in advice
    assert Size.of(str(size)) == size
