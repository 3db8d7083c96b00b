"""Pieces of an HTML page: no script, no network, dark and light. Each escapes what it is given."""

import base64
from collections.abc import Sequence
from html import escape
from typing import Any, Final

DEEP: Final = 6  # levels of JSON that are shown
PNG: Final = b"\x89PNG\r\n\x1a\n"
STYLE: Final = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --line: #d9dee5; --paper: #fbfcfd; --card: #fff;
  --accent: #2563a8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --soft: #97a3b3; --line: #333c48; --paper: #14181d;
  --card: #1c2229; --accent: #7db4ee; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 68rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; margin: 0 0 1.25rem; } h2 { font-size: 1.15rem; margin: 2.25rem 0 .6rem; }
p { margin: .4rem 0; color: var(--soft); }
.scroll { overflow-x: auto; margin: .5rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; overflow-wrap: normal; }
th, td { text-align: left; vertical-align: top; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); }
td:first-child { min-width: 6.5rem; } td { max-width: 42rem; overflow-wrap: anywhere; min-width: 3.5rem; }
th { color: var(--soft); font-weight: 600; white-space: nowrap; } td.n, th.n { text-align: right; white-space: nowrap; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem; }
.tile, figure { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .7rem .9rem; }
.tile b { display: block; font-size: 1.35rem; } .tile span { color: var(--soft); font-size: .85rem; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: .75rem; }
.wide { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: .75rem; }
figure { margin: 0; } figcaption { color: var(--soft); font-size: .85rem; }
img { max-width: 100%; height: auto; display: block; background: #fff; } svg { width: 100%; display: block; }
.badge { display: inline-block; border: 1px solid var(--accent); color: var(--accent); border-radius: 1rem;
  padding: .1rem .7rem; font-size: .85rem; margin: .3rem 0; }
.bar { display: grid; grid-template-columns: minmax(5rem, 10rem) 1fr 4.5rem; gap: .75rem;
  align-items: center; font-size: .9rem; margin: .25rem 0; }
.bar i { display: block; height: .8rem; border-radius: 3px; background: var(--accent); }
summary { cursor: pointer; color: var(--accent); margin: .5rem 0; }
"""


def page(title: str, parts: Sequence[str]) -> str:
    """The document. Its policy forbids all but its own style and the pictures inside of it."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body>\n</html>\n"
    )


def section(title: str, inside: str) -> str:
    """Nothing where there is nothing inside; `inside` is HTML."""
    return f"<section><h2>{escape(title)}</h2>{inside}</section>" if inside else ""


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def badge(text: str) -> str:
    return f'<span class="badge">{escape(text)}</span>'


def tiles(facts: Sequence[tuple[str, str]]) -> str:
    inside = "".join(f'<div class="tile"><b>{escape(v)}</b><span>{escape(k)}</span></div>' for k, v in facts)
    return f'<div class="tiles">{inside}</div>'


def table(rows: Sequence[Sequence[Any]], head: Sequence[Any] = ()) -> str:
    """Rows of texts; a column of numbers goes to the right."""
    if not rows:
        return ""
    width = max(map(len, rows))
    right = [all(len(row) > i and _number(str(row[i])) for row in rows) for i in range(width)]

    def line(cells: Sequence[Any], tag: str) -> str:
        made = (f"<{tag}{' class=n' if right[i] else ''}>{escape(str(cell))}</{tag}>" for i, cell in enumerate(cells))
        return f"<tr>{''.join(made)}</tr>"

    top = line(head, "th") if head else ""
    return f'<div class="scroll"><table>{top}{"".join(line(row, "td") for row in rows)}</table></div>'


def _number(text: str) -> bool:
    return text == "-" or text.replace(",", "").lstrip("-").replace(".", "", 1).replace("e-", "").isdecimal()


def details(title: str, inside: str, opened: bool = False) -> str:
    """`inside` is HTML."""
    return f"<details{' open' if opened else ''}><summary>{escape(title)}</summary>{inside}</details>"


def bars(title: str, lines: Sequence[tuple[str, float]]) -> str:
    """One bar a line, from 0 to the largest."""
    most = max((abs(value) for _, value in lines), default=0.0)
    if len(lines) < 2 or not most:
        return ""
    made = "".join(
        f'<div class="bar"><span>{escape(name)}</span><i style="width:{100 * max(value, 0.0) / most:.1f}%"></i>'
        f"<span>{value:.4f}</span></div>"
        for name, value in lines
    )
    return paragraph(title) + made


def curve(title: str, points: Sequence[tuple[float, float]]) -> str:
    """A line through points (x, y), with both ends and the extremes told."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    wide, high = max(xs) - min(xs) or 1.0, max(ys) - min(ys) or 1.0
    path = " ".join(f"{300 * (x - min(xs)) / wide:.1f},{100 - 100 * (y - min(ys)) / high:.1f}" for x, y in points)
    told = f"{title}: {ys[0]:.3g} to {ys[-1]:.3g}, least {min(ys):.3g}, most {max(ys):.3g}"
    return (
        f'<figure><svg viewBox="-4 -4 308 108" role="img" aria-label="{escape(told)}"><polyline points="{path}" '
        'fill="none" stroke="var(--accent)" stroke-width="1.5" vector-effect="non-scaling-stroke"/></svg>'
        f"<figcaption>{escape(told)}</figcaption></figure>"
    )


def figure(title: str, png: bytes) -> str:
    """A picture inside of the page; a note for what is no PNG."""
    if not png.startswith(PNG):
        return paragraph(f"{title} is no PNG and is not shown")
    data = base64.b64encode(png).decode("ascii")
    return (
        f'<figure><img alt="{escape(title)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(title)}</figcaption></figure>"
    )


def shown(value: Any, depth: int = 0) -> str:
    """Any JSON: facts in two columns, lists of objects as tables."""
    if not isinstance(value, dict):
        return paragraph(spelled(value))
    deep = {k: v for k, v in value.items() if isinstance(v, dict | list) and not simple(v)}
    text = table([[k, spelled(v)] for k, v in value.items() if k not in deep])
    for name, part in deep.items():
        if isinstance(part, list) and part and all(isinstance(row, dict) for row in part):
            keys = list(dict.fromkeys(key for row in part for key in row))
            inner = table([[spelled(row.get(key)) for key in keys] for row in part], keys)
            text += details(f"{name} ({len(part)})", inner, len(part) <= 12)
        elif isinstance(part, dict):
            text += details(str(name), shown(part, depth + 1) if depth < DEEP else paragraph("..."), len(part) <= 12)
        else:
            text += table([[name, spelled(part)]])
    return text


def spelled(value: Any, depth: int = 0) -> str:
    """Any JSON in one line."""
    if value is None:
        return "-"
    if value in ([], {}):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if value and not 1e-3 <= abs(value) < 1e5 else f"{value:.4f}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict | list) and depth > DEEP:
        return "..."
    if isinstance(value, dict):
        return ", ".join(f"{key} {spelled(part, depth + 1)}" for key, part in value.items() if part is not None)
    return ", ".join(spelled(part, depth + 1) for part in value) if isinstance(value, list) else str(value)


def simple(value: dict[str, Any] | list[Any]) -> bool:
    """Whether it fits into a line: a few numbers and texts."""
    parts = value.values() if isinstance(value, dict) else value
    return len(value) <= 4 and not any(isinstance(part, dict | list) for part in parts)
