"""The documents: links lead somewhere, code can be read, and the README's commands are those that CI runs."""

import ast
import re
from pathlib import Path

import pytest

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


def cells(line: str) -> list[str]:
    return [cell.strip(" *") for cell in line.strip().strip("|").split("|")]
