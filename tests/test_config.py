import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zsaq import Grid, QuantConfig

grids = st.one_of(
    st.builds(Grid, bits=st.integers(2, 8), symmetric=st.booleans(), per=st.sampled_from(["channel", "tensor", 32])),
    st.builds(Grid, bits=st.just(2), levels=st.sampled_from(["half", "ternary"])),
    st.builds(Grid, levels=st.sampled_from(["nf4", "fp4"]), scales=st.sampled_from(["float16", "e8m0"])),
)
plain = st.builds(
    QuantConfig,
    weight=st.none() | grids,
    input=st.none() | st.builds(Grid, bits=st.integers(2, 8), per=st.sampled_from(["token", "tensor", 16])),
    embedding=st.none() | st.builds(Grid, bits=st.integers(2, 8)),
    ranges=st.sampled_from(["minmax", "searched", "learned"]),
    head=st.none() | st.builds(Grid, bits=st.integers(2, 8)),
    spare_tied=st.booleans(),
)
rules = st.lists(st.tuples(st.text(min_size=1, max_size=8), st.none() | plain), max_size=3).map(tuple)


@given(plain, rules)
def test_json_both_ways(config: QuantConfig, rules) -> None:
    config = replace(config, rules=rules)
    assert QuantConfig.from_saved(json.loads(json.dumps(config.to_dict()))) == config
    assert QuantConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("text", "weight", "inputs"),
    [
        ("w2a8", Grid(2, levels="half"), Grid(8, per="token")),
        ("w2a8-ternary", Grid(2, levels="ternary"), Grid(8, per="token")),
        ("w2a8-integer", Grid(2), Grid(8, per="token")),
        ("w4a8g128", Grid(4, per=128), Grid(8, per="token")),
        ("w8a8", Grid(8), Grid(8, per="token")),
        ("W4A4", Grid(4), Grid(4, per="token")),
        ("w3a16", Grid(3), None),
        ("w2a8b32", Grid(2, per=32, levels="half"), Grid(8, per=32)),
        ("w4a16g64-nf4", Grid(4, per=64, levels="nf4"), None),
        ("w8a16-fp8", Grid(8, levels="fp8"), None),
        ("w4a16-mxfp4", Grid(4, per=32, levels="fp4", scales="e8m0"), None),
        ("w2a8s", Grid(2, levels="half"), Grid(8, per="tensor")),
        ("W4A4S", Grid(4), Grid(4, per="tensor")),
        ("w16a8se8", None, Grid(8, per="tensor")),
        ("w2a8s-ternary", Grid(2, levels="ternary"), Grid(8, per="tensor")),
        ("w4a8sg64-nf4", Grid(4, per=64, levels="nf4"), Grid(8, per="tensor")),
        ("w4a8g16-nvfp4", Grid(4, per=16, levels="fp4", scales="e4m3"), Grid(8, per="token")),
    ],
)
def test_parse(text: str, weight: Grid, inputs: Grid | None) -> None:
    config = QuantConfig.parse(text)
    assert (config.weight, config.input, config.embedding) == (weight, inputs, Grid(8))


def test_the_token_table_has_bits_of_its_own() -> None:
    assert QuantConfig.parse("w2a8e4").embedding == QuantConfig.parse("w4a16e4g8").embedding == Grid(4)
    assert QuantConfig.parse("w2a8e16").embedding is None


widths, ends = st.integers(2, 8), st.one_of(st.none(), st.integers(2, 8))


@given(widths, widths, ends, ends, st.one_of(st.none(), st.integers(1, 256)), st.booleans())
def test_an_s_changes_the_inputs_alone(
    weights: int, inputs: int, table: int | None, head: int | None, group: int | None, half: bool
) -> None:
    rest = "".join(f"{name}{value}" for name, value in (("e", table), ("h", head), ("g", group)) if value)
    rest += "-s16" if half else ""
    dynamic, static = (QuantConfig.parse(f"w{weights}a{inputs}{s}{rest}") for s in ("", "s"))
    assert static == replace(dynamic, input=Grid(inputs, per="tensor")) and static.static and not dynamic.static
    assert QuantConfig.from_saved(json.loads(json.dumps(static.to_dict()))) == static


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("w4a16s", r"'w4a16s': activations in floats have no range.*leave the s out"),
        ("w4a16se8", "activations in floats have no range"),
        ("w4a8sb32", r"static activations have one range and no blocks; write g32"),
        ("w2a8e4s", r"\[s for static activations\]"),
        ("w2sa8", r"\[s for static activations\]"),
        ("w2a8ss", r"\[s for static activations\]"),
    ],
)
def test_an_s_that_says_nothing_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        QuantConfig.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "w4a16b32",
        "w2a8e1",
        "w2a8b0",
        "w2",
        "w1a8",
        "w9a8",
        "a8w2",
        "w2a8g0",
        "w2a8g",
        "w4a8-half",
        "w2a8 x",
        "w2a0",
        "w16a8g8",
        "2",
    ],
)
def test_bad_text_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"w2a8|group size|blocks"):
        QuantConfig.parse(text)


@given(st.text(max_size=12))
def test_any_text_parses_or_says_why(text: str) -> None:
    try:
        config = QuantConfig.parse(text)
    except ValueError as error:
        assert repr(text) in str(error) or "per is" in str(error)
    else:
        assert QuantConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({"weights": None}, "weights"),
        ({"weight": {"bits": 4, "group": 3}}, "group"),
        ({"weight": {"bits": "4"}}, "'4'"),
        ({"weight": {"bits": True}}, "True"),
        ({"weight": {"bits": 99}}, "99"),
        ({"weight": {"per": -3}}, "-3"),
        ({"weight": {"per": "token"}}, "token"),
        ({"input": {"per": "channel"}}, "channel"),
        ({"ranges": "best"}, "best"),
        ({"rules": "all"}, "all"),
        ({"rules": [["a"]]}, "'a'"),
        ({"rules": [[1, None]]}, "1"),
        ({"rules": [["*", {"rules": [["*", None]]}]]}, "rules"),
        ({"weight": {"bits": 4, "levels": "half"}}, "half"),
        ([], "QuantConfig"),
        (None, "QuantConfig"),
    ],
)
def test_hostile_json_is_refused(data, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        QuantConfig.from_dict(data)


def test_first_matching_rule_wins() -> None:
    fine = QuantConfig(Grid(8))
    config = QuantConfig(Grid(2), rules=(("a.*", fine), ("*", None)))
    assert config.of("a.b") == (fine, True)
    assert config.of("b") == (None, True)
    assert QuantConfig(Grid(2)).of("b")[1] is False


def test_a_rule_that_matches_nothing_is_named() -> None:
    config = QuantConfig(rules=(("decoder.*", None),))
    with pytest.raises(ValueError, match=r"decoder\.\*.*encoder"):
        config.check_rules(["encoder"])


@pytest.mark.parametrize("rules", [None, 5, "all", {"*": None}])
def test_rules_are_a_tuple(rules: Any) -> None:
    with pytest.raises(ValueError, match=r"rules is .*; give a tuple of \(glob on module names, QuantConfig or None\)"):
        QuantConfig(rules=rules)
    listed: Any = [("*", None)]
    assert QuantConfig(rules=listed).rules == (("*", None),)
