"""Which public model another was fine-tuned from, by what lies beside it."""

from pathlib import Path

from zsaq.io.record import read_results
from zsaq.io.verifying import is_student
from zsaq.report.card import metadata_of


def origin_of(source: str | Path) -> str:
    """The `base_model` on the card of a fine-tuned model, a folder or Hub id; of a student the one on its teacher's.

    Raises ValueError where no card names one, or several.
    """
    if not is_student(source):
        return named_by(source)
    try:
        known = read_results(Path(source)).base
        teacher = known.id if known is not None and known.id else named_by(source)
    except ValueError as error:
        raise ValueError(f"nothing beside {source} tells what it was made of: give the base ({error})") from error
    return named_by(teacher)


def named_by(source: str | Path) -> str:
    named = metadata_of(source).get("base_model")
    names = [named] if isinstance(named, str) else named if isinstance(named, list) else []
    if len(names) != 1 or not isinstance(names[0], str) or not names[0].strip():
        several = f"names several ({', '.join(map(str, names))})" if len(names) > 1 else "names none"
        raise ValueError(f"the card of {source} {several}: give the base that it was fine-tuned from")
    return names[0].strip()
