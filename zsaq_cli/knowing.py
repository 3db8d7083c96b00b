"""What can be known of a model before any run: `zsaq inspect` and `zsaq fit`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from zsaq_cli.answer import Json, Outcome, answer, hushed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Base = Annotated[
    str | None,
    typer.Option("--base", help="The public model it was fine-tuned from; default: base_model of its card."),
]


def inspect(
    model: Annotated[str, typer.Argument(help="Fine-tuned model, or a student: folder or Hub id.", show_default=False)],
    base: Base = None,
    words: Annotated[int, typer.Option("--words", min=1, max=2**31 - 1, help="How many words are shown.")] = 40,
    forget: Annotated[
        str | None, typer.Option("--forget", help="Save a copy that tells less there: rows of the base, where it can.")
    ] = None,
    agreement: Annotated[
        float, typer.Option("--agreement", help="With --forget: the share of answers that stay.")
    ] = 0.99,
    as_json: Json = False,
) -> None:
    """Tell what MODEL's weights remember of the texts that it was fine-tuned on, beside its public base.

    Rows of the token table move where a token stood in a text. Whoever has the model and its base can read the same: a
    release leaks these words. No text is read. With --forget a float copy is saved in which rows are the base's again,
    first those of the rarest words, as many as leave --agreement of the answers to random words.

    Examples:

    \b
    zsaq inspect you/minilm-sst2 --base sentence-transformers/all-MiniLM-L6-v2
    zsaq inspect you/minilm-sst2 --forget minilm-sst2-forgetful --agreement 0.98 --json
    """

    def work() -> Outcome:
        from zsaq.io.target import ready_new
        from zsaq.language.fingerprint import Fingerprint
        from zsaq.language.forgetting import told_in
        from zsaq.quant.model import is_quantized
        from zsaq.report.table import Table

        if forget is not None:
            ready_new(forget)
        teacher, tokenizer = read(model)
        origin, known = base_for(model, base)
        found = Fingerprint.of(teacher, known)
        rounded = {} if is_quantized(teacher) or not found.signal else {
            f"found again in {bits} bits": told_in(bits, teacher, known) for bits in (8, 4)
        }  # fmt: skip
        facts: dict[str, Any] = {
            "model": model, "base": origin, "signal": found.signal, "silence": found.silence,
            "tokens": len(found.moved), "moved": int(found.moved.sum()), "longest": found.longest,
            "pairs": found.pairs, **rounded, "leaks": found.signal,
        }  # fmt: skip
        if forget is not None:
            facts |= saved(forget, teacher, known, tokenizer, agreement)
        named = found.words(tokenizer, words)
        shown = [Table.of_facts(facts).to_terminal("what the weights remember"), *map(escape, lines(found, named))]
        return Outcome({**facts, "words": named}, tuple(shown))

    answer(as_json, hushed(work))


def fit(
    text: Annotated[str, typer.Argument(help="Text file, JSON lines, Parquet, folder or Hub id.", show_default=False)],
    teacher: Annotated[str, typer.Argument(help="Float model: folder or Hub id.", show_default=False)],
    base: Base = None,
    as_json: Json = False,
) -> None:
    """Tell how well TEXT suits TEACHER as calibration text, before any run, from the teacher's own answers.

    TEXT holds a text a line, or a pair with a tab between; of tables the columns text and text_pair. It is compared
    with random tokens, which need no text, and with the words that the teacher was fine-tuned on if its base is known.

    Examples:

    \b
    zsaq fit reviews.txt textattack/bert-base-uncased-SST-2 --base bert-base-uncased
    zsaq fit you/reviews you/minilm-sst2 --json
    """

    def work() -> Outcome:
        from dataclasses import asdict

        from zsaq import Corpus
        from zsaq.language.fingerprint import Fingerprint
        from zsaq.language.suitability import Suitability
        from zsaq.report.origin import origin_of
        from zsaq.report.table import Table

        rows = Corpus.load(text).rows
        model, tokenizer = read(teacher)
        notes: list[str] = []
        found = None
        try:
            named = base or origin_of(teacher)
        except ValueError as error:
            notes.append(str(error))
        else:
            found = Fingerprint.of(model, base_for(teacher, named)[1])
            notes += [found.silence] if found.silence else []
        own = Suitability.of(model, tokenizer, rows, found)
        random = Suitability.of_random(model, tokenizer, text_pair=not isinstance(rows[0], str))
        verdict = own.verdict(random)
        facts = {"text": text, "teacher": teacher, **asdict(own), "random": asdict(random), "verdict": verdict}
        sides = [{"of": name, **asdict(each)} for name, each in ((text, own), ("random tokens", random))]
        known = [{key: part for key, part in side.items() if any(s[key] is not None for s in sides)} for side in sides]
        return Outcome({**facts, "notes": notes}, (Table(known).to_terminal(), *map(escape, (verdict, *notes))))

    answer(as_json, hushed(work))


def read(source: str) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """A float model or a student, and its tokenizer. Raises ValueError for what is none, or has none."""
    import zsaq
    from zsaq.eval.pretrained import tokenizer_for
    from zsaq.io.folder import place_of
    from zsaq.io.teacher import load_teacher
    from zsaq.io.verifying import is_student

    source = place_of(source)
    model = zsaq.load(source) if is_student(source) else load_teacher(source)
    return model, tokenizer_for(model, source)


def base_for(model: str, base: str | None) -> "tuple[str, PreTrainedModel]":
    """The base's name, given or on a card, and itself. Raises ValueError."""
    from zsaq.io.base import load_base
    from zsaq.report.origin import origin_of

    try:
        name = base if base is not None else origin_of(model)
    except ValueError as error:
        raise ValueError(f"{error}; here: --base MODEL") from error
    return name, load_base(name)


def lines(found: Any, words: list[str]) -> list[str]:
    """What the fingerprint means, in sentences."""
    if not found.signal:
        return [f"No signal: {found.silence}."]
    return [
        f"The words that moved most: {', '.join(words)}",
        "A release leaks these words, in 8 and 4 bits too: whoever has it and its base reads them as was done here. To "
        "set rows back, let the float model forget (--forget DIR), and quantize that.",
    ]


def saved(folder: str, teacher: Any, base: Any, tokenizer: Any, agreement: float) -> dict[str, Any]:
    """Let the teacher forget, save that, and tell what it was."""
    from zsaq.atomic import atomic_folder
    from zsaq.io.target import ready_new
    from zsaq.language.forgetting import forget

    done = forget(teacher, base, tokenizer, agreement)
    with atomic_folder(ready_new(folder), ready_new) as place:
        done.model.save_pretrained(place)
        tokenizer.save_pretrained(place)
    return {"forgetful": folder, "set back": done.back, "agreement": done.agreement, "still found": done.told}
