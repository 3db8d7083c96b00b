"""Templates of pages, by Jinja2; whatever they are given is escaped."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment


@cache
def environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=visible,
    )


def visible(value: Any) -> Any:
    """A value as a page shows it: texts without control characters."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return "".join(each if each.isprintable() else " " for each in value)


def render(template: str, **values: Any) -> str:
    """The text of a template in templates/, with these values. A value that has `__html__` is HTML already."""
    return environment().get_template(template).render(values)
