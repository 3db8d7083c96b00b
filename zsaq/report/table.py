"""Tables: rows of facts as Markdown, HTML, CSV, and for the terminal. What others wrote is escaped in each."""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

from zsaq.atomic import atomic_file
from zsaq.report.html import render

if TYPE_CHECKING:
    from rich.table import Table as RichTable

DEEP: Final = 6  # levels of JSON that are spelled out
NONE: Final = "-"  # where a row has no such fact


@final
@dataclass(frozen=True)
class Table:
    """`rows`: facts by column; columns stand in the order of their first appearance. Without `head` they are nameless.

    A column of numbers goes to the right.
    """

    rows: Sequence[Mapping[str, Any]]
    head: bool = True

    @classmethod
    def of_facts(cls, facts: Mapping[str, Any]) -> "Table":
        """Two columns, what and how much; a fact that is None or empty is not there."""
        known = {name: value for name, value in facts.items() if value not in (None, "", [], {}, ())}
        return cls([{"what": name, "value": value} for name, value in known.items()], head=False)

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(column for row in self.rows for column in row))

    def cells(self) -> list[list[str]]:
        """Texts by row and column."""
        return [[one_line(row.get(column)) for column in self.columns] for row in self.rows]

    def numeric(self) -> list[bool]:
        """By column, whether it holds nothing but numbers."""
        return [all(map(is_number, column)) for column in zip(*self.cells(), strict=True)]

    def to_markdown(self) -> str:
        """A table as GitHub and the Hub read it; "" without rows."""
        if not self.rows:
            return ""
        rules = ["---:" if numeric else "---" for numeric in self.numeric()]
        heads = [markdown(column) if self.head else "" for column in self.columns]
        lines = [heads, rules, *([markdown(cell) for cell in row] for row in self.cells())]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    def to_html(self) -> str:
        """A <table>, in a box that scrolls; "" without rows."""
        return render("table.html", table=self, numeric=self.numeric()) if self.rows else ""

    __html__ = to_html  # as templates show it

    def to_csv(self, path: str | Path) -> Path:
        """A file with a line for each row, numbers whole; "" where a row has no such fact."""
        with atomic_file(Path(path)) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, restval="")
            writer.writeheader()
            writer.writerows({name: cell_of(value) for name, value in row.items()} for row in self.rows)
        return Path(path)

    def to_terminal(self, title: str = "") -> "RichTable":
        """For `rich.console.Console.print`."""
        from rich.markup import escape
        from rich.table import Table as RichTable

        def plain(text: str) -> str:
            return escape(printable(text))

        table = RichTable(title=plain(title) or None, title_justify="left", show_header=self.head)
        for column, numeric in zip(self.columns, self.numeric() or [False] * len(self.columns), strict=True):
            table.add_column(plain(column), justify="right" if numeric else "left", overflow="fold")
        for row in self.cells():
            table.add_row(*map(plain, row))
        return table


def is_number(text: str) -> bool:
    return text == NONE or re.fullmatch(r"-?[\d,]+(\.\d+)?(e[+-]?\d+)?( ± [\d.]+)?", text) is not None


def printable(text: object) -> str:
    """One line of what can be shown: no control characters (a terminal obeys them), no halves of characters."""
    whole = str(text).encode("utf-8", "replace").decode()
    return "".join(each if each.isprintable() else " " for each in " ".join(whole.split()))


def markdown(text: object) -> str:
    """One line without Markdown's or HTML's signs, and without links, for text that others chose."""
    plain = re.sub(r"([|`*_<>\[\]\\~&$#])", r"\\\1", printable(text))
    return re.sub(r"(?i)\b(https?|ftp|mailto|www)([:.])", r"\1\\\2", plain)


def code(text: object) -> str:
    """The same as a span of code, where all signs but its own are plain."""
    return f"`{printable(text).replace('`', chr(39)) or ' '}`"


def link(text: object) -> str:
    """An address that can be followed, if it is one of the web and nothing else; any other text as it is."""
    address = printable(text)
    return f"<{address}>" if re.fullmatch(r"https://[\w.-]+(/[\w./~%?=&#+-]*)?", address, re.ASCII) else markdown(text)


def cell_of(value: Any) -> Any:
    """As a spreadsheet shows it: a text that it would take for a formula begins with an apostrophe."""
    formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) and not is_number(value)
    return f"'{value}" if formula else value


def digits(value: float) -> str:
    """Four decimals, or as many digits where these would not tell small numbers apart, or large ones be long."""
    return f"{value:.4g}" if value and not 1e-3 <= abs(value) < 1e5 else f"{value:.4f}"


def one_line(value: Any, depth: int = 0) -> str:
    """Any JSON in one line."""
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return digits(value)
    if isinstance(value, int):
        return f"{value:,}" if abs(value) < 10**300 else "a number of more than 300 digits"
    if not isinstance(value, Mapping | list | tuple):
        return printable(value)
    if not value:
        return "none"
    if depth > DEEP:
        return "..."
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {one_line(part, depth + 1)}" for key, part in value.items() if part is not None)
    return ", ".join(one_line(part, depth + 1) for part in value)
