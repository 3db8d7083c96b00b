"""`zsaq synthesize`: text for a teacher, written once and kept as a data set."""

from typing import Annotated

import typer

from zsaq_cli.answer import Json, Outcome, answer, hushed
from zsaq_cli.knowing import Base
from zsaq_cli.making import Pair


def synthesize(
    model: Annotated[str, typer.Argument(help="Float model that reads the text: folder or Hub id.")],
    output_dir: Annotated[str, typer.Option("--output_dir", help="Where the data set goes.", show_default=False)],
    prompts: Annotated[
        list[str] | None,
        typer.Option("--prompt", help='As "One sentence from a film review:"; may be repeated. Default: automatic.'),
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, max=2**22, help="Texts, or pairs of texts.")] = 4096,
    generator: Annotated[
        str | None, typer.Option("--generator", help="Causal model that writes; default: SmolLM2-135M-Instruct.")
    ] = None,
    base: Base = None,
    text_pair: Pair = False,
    temperature: Annotated[float, typer.Option("--temperature")] = 1.0,
    max_tokens: Annotated[
        int | None, typer.Option("--max_tokens", min=1, max=2**16, help="Of a text; default: 48, or what MODEL reads.")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat/--no_chat", help="Use the generator's chat template.")] = True,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    license: Annotated[
        str | None, typer.Option("--license", help="Of the generator, if its card names none; for the data set's card.")
    ] = None,
    push_to_hub: Annotated[str | None, typer.Option("--push_to_hub", help="Also publish it, as user/name.")] = None,
    as_json: Json = False,
) -> None:
    """Write text that fits MODEL, without any data, and keep it as a data set (Parquet, with a card).

    Every method takes it (zsaq quantize MODEL --corpus DIR), and so do other tools that calibrate with a data set. A
    prompt that holds {first} asks for the second text of a pair. Without --prompt they are made of MODEL's labels, name
    and card, of what its weights remember (--base), or of its own answers.

    Examples:

    \b
    zsaq synthesize sst2-bert --prompt "One sentence from a film review:" --n 4096 --output_dir reviews
    zsaq synthesize mrpc-bert --text_pair --n 2048 --output_dir pairs
    """

    def work() -> Outcome:
        import zsaq
        from zsaq.io.target import placed
        from zsaq.report.table import Table

        target = placed(output_dir)
        zsaq.Corpus.check_target(target)
        corpus = zsaq.synthesize_text(
            model, n, prompts=prompts, generator=generator, base=base, text_pair=text_pair, temperature=temperature,
            max_tokens=max_tokens, chat=chat, seed=seed, license=license,
        )  # fmt: skip
        corpus.save(target)
        facts = {"folder": output_dir, "rows": len(corpus.rows), **corpus.facts, "sha256": corpus.sha256}
        if push_to_hub is not None:
            facts["url"] = corpus.push_to_hub(push_to_hub)
        few = {name: value for name, value in facts.items() if name != "prompts"}
        examples = [{"text": row if isinstance(row, str) else " | ".join(row)} for row in corpus.rows[:8]]
        shown = (
            Table.of_facts(few).to_terminal("corpus"),
            Table([{"prompt": prompt} for prompt in facts["prompts"][:8]]).to_terminal("prompts, the first of them"),
            Table(examples).to_terminal("texts, the first of them"),
            f"Next: zsaq quantize MODEL --corpus {output_dir} ...",
        )
        return Outcome(facts, shown)

    answer(as_json, hushed(work))
