"""What a run may take: names that exist, numbers that can be."""

import pytest

import zsaq
from zsaq.method import Budget, Method

ROW = Method(
    "toy", "does nothing", lambda *_: None, "nothing", budgets={"steps": (2, 20, 200), "warm": (0, 4, 40)},
    settings={"lr": 0.1, "bridge": "auto", "ratio": (5, 1), "lora": False, "cap": 8, "mix": None},
)  # fmt: skip


def test_effort_scales_what_is_not_named() -> None:
    assert [Budget.of(ROW, effort)["steps"] for effort in ("light", "default", "best")] == [2, 20, 200]
    budget = Budget.of(ROW, "light", {"steps": 7, "lr": 1.0})
    assert dict(budget.numbers) == {
        "steps": 7, "warm": 0, "lr": 1.0, "bridge": "auto", "ratio": (5, 1), "lora": False, "cap": 8, "mix": None,
    }  # fmt: skip
    assert str(budget) == "steps 7, warm 0, lr 1.0, bridge auto, ratio (5, 1), lora False, cap 8"


@pytest.mark.parametrize("given", [{"lr": 1}, {"ratio": [3, 2]}, {"lora": True}, {"cap": 1}, {"mix": "any"}])
def test_a_setting_of_its_defaults_type_is_taken(given: dict) -> None:
    assert given.items() <= Budget.of(ROW, "light", given).numbers.items()


@pytest.mark.parametrize("name", ["language", "vision"])
def test_every_default_of_the_tables_passes(name: str) -> None:
    for method in zsaq.methods()[name].values():
        assert Budget.of(method, "light", method.options("best")).numbers == method.options("best")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"stesp": 3}, "no option stesp; its options are steps=2, warm=0, lr=0.1, bridge='auto'"),
        ({"lr": "x"}, "lr is 'x'; give a finite number of at least 0, as the default 0.1"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"lr": True}, "lr is True"),
        ({"ratio": 5}, r"ratio is 5; give 2 values with commas, as the default \(5, 1\)"),
        ({"ratio": (5, 1, 1)}, "ratio is"),
        ({"ratio": (5, "x")}, "ratio is"),
        ({"ratio": (5, -1)}, "ratio is"),
        ({"bridge": 3}, "bridge is 3; give text"),
        ({"lora": 1}, "lora is 1; give true or false"),
        ({"cap": 1.5}, "cap is 1.5; give an integer"),
        ({"cap": -1}, "cap is -1; give an integer of at least 0"),
        ({"cap": 2**31}, "cap is 2147483648"),
        ({"steps": 0}, "steps is 0; give an integer of at least 1"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"steps": True}, "steps is True"),
        ({"warm": -1}, "warm is -1; give an integer of at least 0"),
    ],
)
def test_an_option_that_cannot_be_is_refused(given: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Budget.of(ROW, "light", given)


@pytest.mark.parametrize("mixes", [-1, 2**31, 2.5, "3", True])
def test_a_whole_number_that_may_be_left_out(mixes: object) -> None:
    row = zsaq.methods()["vision"]["onepass"]
    assert [Budget.of(row, "light", {"mixes": each})["mixes"] for each in (None, 0, 7)] == [None, 0, 7]
    with pytest.raises(ValueError, match=r"mixes is .*; give an integer of at least 0 and below 2\*\*31"):
        Budget.of(row, "light", {"mixes": mixes})


def test_an_effort_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match="light, default, best"):
        Budget.of(ROW, "heroic")  # pyright: ignore[reportArgumentType]
    bare = Method("rtn", "", lambda *_: None, "nothing")
    with pytest.raises(ValueError, match="rtn has no option steps; its options are none"):
        Budget.of(bare, "best", {"steps": 3})
