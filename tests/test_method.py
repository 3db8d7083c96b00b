"""What a run may take: names that exist, numbers that can be."""

import pytest

from zsaq.method import Budget, Method

ROW = Method(
    "toy", "does nothing", lambda *_: None, "nothing", budgets={"steps": (2, 20, 200), "warm": (0, 4, 40)},
    settings={"lr": 0.1, "bridge": "auto"},
)  # fmt: skip


def test_effort_scales_what_is_not_named() -> None:
    assert [Budget.of(ROW, effort)["steps"] for effort in ("light", "default", "best")] == [2, 20, 200]
    budget = Budget.of(ROW, "light", {"steps": 7, "lr": 1.0})
    assert dict(budget.numbers) == {"steps": 7, "warm": 0, "lr": 1.0, "bridge": "auto"}
    assert str(budget) == "steps 7, warm 0, lr 1.0, bridge auto"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"stesp": 3}, "no option stesp; its options are steps=2, warm=0, lr=0.1, bridge='auto'"),
        ({"steps": 0}, "steps is 0; give an integer of at least 1"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"steps": True}, "steps is True"),
        ({"warm": -1}, "warm is -1; give an integer of at least 0"),
    ],
)
def test_an_option_that_cannot_be_is_refused(given: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Budget.of(ROW, "light", given)


def test_an_effort_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match="light, default, best"):
        Budget.of(ROW, "heroic")  # pyright: ignore[reportArgumentType]
    bare = Method("rtn", "", lambda *_: None, "nothing")
    with pytest.raises(ValueError, match="rtn has no option steps; its options are none"):
        Budget.of(bare, "best", {"steps": 3})
