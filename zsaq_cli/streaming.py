"""`zsaq quantize-files`: thin over `zsaq.quantize_files`."""

from typing import Annotated

import typer

from zsaq_cli.answer import Json, Outcome, answer, hushed
from zsaq_cli.making import Corpus, Effort, student_told


def quantize_files(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Causal language model: folder or Hub id.", show_default=False)],
    output_dir: Annotated[str, typer.Option("--output_dir", help="Where the student goes.", show_default=False)],
    bits: Annotated[str | None, typer.Option("--bits", help="w4a16e8h8g32, ...; default: by the model.")] = None,
    method: Annotated[str, typer.Option("--method", help="rtn, gptq, reconstruct, or auto.")] = "auto",
    effort: Effort = "default",
    corpus: Corpus = None,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    license: Annotated[str | None, typer.Option("--license", help="Of MODEL, if its card names none.")] = None,
    as_json: Json = False,
) -> None:
    """Quantize a MODEL that does not fit into memory: from its files to files, in the memory of one block.

    The student is the one of `zsaq quantize` with the same options, to the bit. gptq and reconstruct read text:
    of --corpus, as `zsaq synthesize` writes it for and with a small model, or what MODEL writes itself, if it fits into
    memory.

    Examples:

    \b
    zsaq quantize-files meta-llama/Llama-3.1-8B --method rtn --output_dir llama-w4
    zsaq quantize-files meta-llama/Llama-3.1-8B --corpus text --output_dir llama-w4
    """

    def work() -> Outcome:
        import zsaq
        from zsaq import script

        results = zsaq.quantize_files(
            model, output_dir, bits, method=method, effort=effort,  # pyright: ignore[reportArgumentType]
            corpus=corpus, seed=seed, license=license, **script.options_of(context.args),
        )  # fmt: skip
        facts = {
            "folder": output_dir, "model": model, "method": results.method, "seed": seed, "effort": effort,
            "budget": results.budget, "zero_shot": results.zero_shot, "seconds": results.student.seconds,
            "bytes": results.student.bytes, "own_text": results.own_text, "scores": results.student.scores,
            "coverage": results.coverage, "config": results.config.to_dict(),
        }  # fmt: skip
        return student_told(facts)

    answer(as_json, hushed(work))
