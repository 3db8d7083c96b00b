"""The documents: links lead somewhere, code can be read, and the README's commands are those that CI runs."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest

import zsaq
from zsaq.stream.quantizing import ROUNDINGS
from zsaq.vision.methods import METHODS

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *ROOT.glob("recipes/*.md"),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_can_be_read(page: Path) -> None:
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        ast.parse(block)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_have_a_cell_for_every_head(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    for before, line in zip(["", *lines], lines, strict=False):
        if before.startswith("|") and line.startswith("|"):
            assert len(cells(line)) == len(cells(before)), line


@pytest.mark.parametrize("page", [ROOT / "docs/results.md", ROOT / "recipes/LOG.md"], ids=lambda page: page.name)
def test_a_cell_holds_one_number(page: Path) -> None:
    """A mean and its deviation are one; a text may hold as many as it likes."""
    several = re.compile(r"[-+.\d]+( ± [.\d]+)?( / |, |; )[-+.\d]")
    for line in page.read_text(encoding="utf-8").splitlines():
        assert not line.startswith("|") or not any(several.match(cell) for cell in cells(line)), line


def test_the_vision_table_tells_what_each_method_needs() -> None:
    """A cell holds what all of its row need, and after that the names of those that need something else."""
    words = {
        "": "any",
        "nothing": "any",
        "attention": "a vision transformer",
        "attention and a linear head": "a vision transformer with one linear head",
    }
    page, told = (ROOT / "docs/methods.md").read_text(encoding="utf-8"), dict[str, str]()
    for line in page[page.index("## Vision") :].splitlines():
        if line.startswith("| `"):
            named, _, needs = cells(line)
            own = dict(re.findall(r"`(\S+)`: ([^;]+)", needs))
            common = re.sub(r"(; )?`\S+`: [^;]+", "", needs)
            told |= {name: own.get(name, common) for name in re.findall(r"`(\S+)`", named)}
    assert {name: words.get(needs, needs) for name, needs in told.items()} == {
        name: method.needs for name, method in METHODS.items()
    }


def test_the_parts_of_the_library_are_there_under_the_names_that_they_have() -> None:
    page = (ROOT / "docs/library.md").read_text(encoding="utf-8")
    named = [
        name for line in page.splitlines() if line.count("|") == 4 for name in re.findall(r"`(\w+)`", cells(line)[2])
    ]
    assert {"one_pass", "compensate"} <= set(named)
    for name in named:
        assert name == "after" or getattr(zsaq, name).__name__ == name


def test_the_limits_name_every_method_of_files() -> None:
    page = (ROOT / "docs/limits.md").read_text(encoding="utf-8")
    there, _, _ = page.partition(" alone, for causal language models")
    assert tuple(re.findall(r"`(\w+)`", there)) == ROUNDINGS


def cells(line: str) -> list[str]:
    return [cell.strip(" *") for cell in line.strip().strip("|").split("|")]


def test_one_pass_and_its_parts_run_as_they_stand() -> None:
    page = (ROOT / "docs/library.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"## One pass, and its parts\n.*?```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(example, names)  # noqa: S102 (our own page)
    assert zsaq.coverage(names["student"])["module.5"].startswith("weights")
