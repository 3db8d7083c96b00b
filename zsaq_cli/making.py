"""`zsaq quantize`: from a float model to the folder of a student, without data."""

import json
import platform
import time
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Final, final

import typer
from rich.console import RenderableType

from zsaq_cli.answer import Json, Outcome, answer, facts_table, rows_table

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PACKAGES: Final = ("zsaq", "torch", "transformers", "accelerate")
SPENT: Final = {  # of the budget that was given, where it is not all of it
    "rtn": (), "zeroq": ("images", "image_steps"), "psaq": ("images", "image_steps"),
    **dict.fromkeys(("gdfq", "gptq", "gptq-qat", "random-qat", "lkd", "llm-qat", "zsaq"), ("steps",)),
}  # fmt: skip
KEPT: Final = {".jsonl", ".png"}  # of what a run tells: curves and pictures


@final
@dataclass(frozen=True)
class Request:
    """What was asked for, as the methods need it; `folder` is where curves and pictures of the run go."""

    model: str
    bits: str
    method: str
    steps: int
    seed: int
    generator: str | None
    text_pair: bool
    preset: str
    images: int
    image_steps: int
    size: int | None
    folder: Path


@final
@dataclass(frozen=True)
class Facts:
    """What `zsaq.save` writes beside the student: results.json, and what the run told."""

    told: dict[str, Any]
    run: Path

    def save_pretrained(self, folder: Path) -> None:
        """Called after the student's own, so that its size is known."""
        self.told["rows"][-1]["bytes"] = sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))
        for path in sorted(self.run.rglob("*")):
            if path.suffix in KEPT:
                target = Path(folder) / path.relative_to(self.run)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
        (Path(folder) / "results.json").write_text(json.dumps(self.told, indent=1), encoding="utf-8")


def quantize(
    model: Annotated[str, typer.Argument(help="Float model: folder or Hub id.", show_default=False)],
    output_dir: Annotated[str, typer.Option("--output_dir", help="Where the student goes.", show_default=False)],
    bits: Annotated[str, typer.Option("--bits", help="w2a8, w4a8g128, w2a8-ternary; images: w4a4, ...")] = "w4a8",
    method: Annotated[
        str,
        typer.Option(
            "--method",
            help="Text: rtn, gptq, gptq-qat, random-qat, lkd, llm-qat, zsaq; "
            "images: rtn, zeroq, psaq, gdfq, hast, synq, genie.",
        ),
    ] = "rtn",
    generator: Annotated[
        str | None,
        typer.Option("--generator", help="Text: causal model that writes; default: the teacher, or facebook/opt-125m."),
    ] = None,
    steps: Annotated[
        int, typer.Option("--steps", min=1, help="Of the student; genie: of each block; gptq: a batch for every 4.")
    ] = 200,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    text_pair: Annotated[bool, typer.Option("--text_pair", help="Text: the teacher reads pairs of texts.")] = False,
    preset: Annotated[
        str, typer.Option("--preset", help="Images: what the bits mean; brecq, uniform or psaq.")
    ] = "brecq",
    images: Annotated[int, typer.Option("--images", min=2, help="Images: how many are made.")] = 128,
    image_steps: Annotated[int, typer.Option("--image_steps", min=1, help="Images: steps that make them.")] = 200,
    size: Annotated[
        int | None, typer.Option("--size", min=1, help="Images: their side in pixels, if nothing in MODEL names it.")
    ] = None,
    license: Annotated[
        str | None, typer.Option("--license", help="Of MODEL, if its card names none; for the student's card.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Quantize MODEL without any data and save the student, whole and verified.

    No data is asked for and none is read; the kind of model comes from its own config. The methods' budgets are small
    here; the recipes have the published ones.

    Examples:

    \b
    zsaq quantize textattack/bert-base-uncased-SST-2 --bits w2a8 --method zsaq --output_dir sst2-w2a8
    zsaq quantize gpt2 --bits w4a8 --output_dir gpt2-w4a8
    zsaq quantize microsoft/resnet-18 --bits w4a4 --method genie --output_dir resnet-18-w4a4
    """

    def work() -> Outcome:
        with TemporaryDirectory(prefix="zsaq-") as temporary:
            request = Request(
                model,
                bits,
                method,
                steps,
                seed,
                generator,
                text_pair,
                preset,
                images,
                image_steps,
                size,
                Path(temporary),
            )
            return make(request, Path(output_dir), license)

    answer(as_json, work)


def make(request: Request, target: Path, license: str | None) -> Outcome:
    """Load, quantize, save, tell."""
    from accelerate.utils import set_seed
    from transformers import PreTrainedModel

    from zsaq import Loop, coverage
    from zsaq.io.saving import save
    from zsaq.quant.plan import plan_of
    from zsaq.report.card import Base
    from zsaq.train.optim import NotFinite
    from zsaq_cli import language, vision

    teacher, kind = float_model(request.model)
    loop = Loop(folder=request.folder)
    teacher.to(loop.accelerator.device)  # pyright: ignore[reportArgumentType]
    before = sum(p.numel() * p.element_size() for p in teacher.parameters())  # methods may widen it to float32
    set_seed(request.seed)
    begin = time.perf_counter()
    try:
        student, parts = (vision if kind == "image" else language).quantize(teacher, kind, request, loop)
    except NotFinite as error:
        if not isinstance(error.student, PreTrainedModel):
            raise
        last = target.with_name(f"{target.name}-last-good")
        error.student.save_pretrained(last)
        raise ValueError(f"{error}. The student as it was after its last good step is in {last}") from error
    seconds = round(time.perf_counter() - begin, 2)
    try:
        base: dict[str, Any] = {"base": vars(Base.of(request.model, license))}
    except ValueError:  # no licence is known; `zsaq push` asks for it
        base = {}
    row: dict[str, Any] = {"name": request.method, "seconds": seconds}
    spent = SPENT.get(request.method, ("images", "image_steps", "steps"))
    told = {
        "rows": [{"name": "teacher", "bytes": before, "seconds": 0.0}, row], "metrics": {}, "job": request.model,
        "method": request.method, "zero_shot": True, "config": plan_of(student).config.to_dict(),
        "preset": request.preset if kind == "image" else None, "seed": request.seed,
        "budget": {name: vars(request)[name] for name in spent},
        "arguments": {k: v for k, v in vars(request).items() if k != "folder"}, "coverage": coverage(student),
        "versions": {p: version(p) for p in PACKAGES} | {"python": platform.python_version()}, **base,
    }  # fmt: skip
    folder = save(student, target, *parts, Facts(told, request.folder))
    facts = {
        "folder": str(folder), "model": request.model, "kind": kind, "bits": request.bits, "method": request.method,
        "seed": request.seed, "seconds": seconds, "bytes": row["bytes"], "teacher_bytes": before,
        "times_smaller": round(before / row["bytes"], 2), "coverage": told["coverage"], "config": told["config"],
    }  # fmt: skip
    return Outcome(facts, shown(facts))


def shown(facts: dict[str, Any]) -> tuple[RenderableType, ...]:
    rows = [{"modules": n, "how": how} for how, n in Counter(facts["coverage"].values()).most_common()]
    few = {k: v for k, v in facts.items() if k not in ("coverage", "config")}
    return (
        rows_table("coverage", rows),
        facts_table("student", few),
        "Next: zsaq verify, zsaq evaluate, zsaq bench, zsaq report",
    )


def float_model(source: str) -> "tuple[PreTrainedModel, str]":
    """The model of a folder or Hub id, and its kind: "text", "causal", "image", or "other".

    Raises ValueError for no model, one that is quantized already, or lacks weights, which would be drawn at random.
    """
    from huggingface_hub.errors import LocalEntryNotFoundError
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForImageClassification,
        AutoModelForSequenceClassification,
    )

    from zsaq.io.loading import auto_class_of

    if source.startswith((".", "/", "~")) and not Path(source).is_dir():
        raise ValueError(f"{source} is no folder: give one with config.json, or a Hub id")
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        if config.to_dict().get("quantization_config"):
            raise ValueError("it is quantized already; give the float model")
        auto = auto_class_of(config)
        model, info = auto.from_pretrained(
            source, config=config, trust_remote_code=False, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        if isinstance(error.__cause__, LocalEntryNotFoundError):
            raise ConnectionError(f"{source} is not here and the Hub was not reached: {error}") from error
        raise ValueError(f"{source} cannot be quantized: {error}") from error
    if info["missing_keys"]:
        raise ValueError(f"{source} has no weights for {sorted(info['missing_keys'])[:8]}: give one with this head")
    kinds = {
        AutoModelForSequenceClassification: "text",
        AutoModelForCausalLM: "causal",
        AutoModelForImageClassification: "image",
    }
    return model.eval(), kinds.get(auto, "other")
