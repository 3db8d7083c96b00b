"""Which architectures of transformers are quantized, saved, loaded and exported, and why the others are refused.

    python -m recipes.benchmarks.architectures --output docs/architectures.md      # all, in about twenty minutes
    python -m recipes.benchmarks.architectures GPT2LMHeadModel SwinForImageClassification

Tiny models with random weights, from their configurations alone: nothing is downloaded. Each is rounded to W4A8, saved,
loaded, compared bit by bit in all that it answers, and exported to ONNX, whose answers are compared too. What is not a
refusal of zsaq's own is a fault: the last line counts them, and the exit code is 1.
"""

import argparse
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from transformers import BitImageProcessorPil, PreTrainedModel

from recipes.benchmarks.refusals import first_line, ours
from recipes.benchmarks.text_models import TEXT
from recipes.benchmarks.tiny import SIDE, answers, inputs_of, tiny
from recipes.benchmarks.vision_models import VISION
from zsaq import calibrate, export, load, quantize_model, save
from zsaq.deploy.onnx.session import OnnxModel
from zsaq.deploy.parity import verify
from zsaq.vision.presets import psaq

FAULT, REFUSED, NOT_BUILT, YES = "FAULT", "refused", "not built", "yes"
LONGEST: Final = 180  # characters of a sentence
FAR: Final = 0.1  # of the largest answer: more than a rounding tie apart
TWICE: Final = (  # also at two bits
    *("BertForSequenceClassification", "GPT2LMHeadModel", "LlamaForCausalLM", "Gemma2ForCausalLM"),
    *("T5ForConditionalGeneration", "ResNetForImageClassification", "ViTForImageClassification"),
)
NO_LOGITS: Final = (
    *("CLIPVisionModel", "SiglipVisionModel", "DINOv3ViTModel", "DPTForDepthEstimation", "GLPNForDepthEstimation"),
    *("DPTForSemanticSegmentation",),  # which leaves layers out, so that their ranges see nothing
)
HEAD: Final = """# Architectures

What `python -m recipes.benchmarks.architectures --output docs/architectures.md` found with transformers {version}: tiny
models with random weights, from their configurations alone, at W4A8 (`rtn`; of images the preset `psaq`) unless a row
says otherwise. *Share*: of the weights' numbers that are quantized; token tables, heads and norms weigh more in tiny
models than in real ones. *Bit-equal*: all answers of the loaded model are the student's. *ONNX*: exported, verified by
the parity report, and answers as the student does. What is refused is told in the refusal's first sentence.

"""


@dataclass
class Row:
    """What became of one model; the first step that failed is the last that was tried."""

    name: str
    share: str = ""
    equal: str = ""
    onnx: str = ""

    def cells(self) -> list[str]:
        return [self.name, self.share, self.equal, self.onnx]

    @property
    def faults(self) -> list[str]:
        return [cell for cell in self.cells() if cell.startswith(FAULT)]


def told(error: BaseException) -> str:
    """The first sentence of a refusal of ours; of anything else its type and its first line, as a fault."""
    if ours(error):
        return f"{REFUSED}: {first_line(error).split('; ')[0][:LONGEST]}"
    return f"{FAULT}: {type(error).__name__}: {first_line(error)[:LONGEST]}"


def tried(step: Callable[[], Any]) -> tuple[Any, str]:
    """What a step answers, and why it does not."""
    try:
        return step(), ""
    except Exception as error:  # noqa: BLE001 (whatever comes is what is measured)
        return None, told(error)


def student_of(teacher: PreTrainedModel, bits: str) -> PreTrainedModel:
    if type(teacher).__name__ in TEXT or bits.endswith("a16"):
        return quantize_model(teacher, bits)
    return calibrate(quantize_model(teacher, psaq(bits, teacher)), [inputs_of(teacher, seed) for seed in (1, 2)])


def readers(teacher: PreTrainedModel) -> list[Any]:
    """What lies beside a model and tells how large its images are, where its configuration does not."""
    side = {"height": SIDE, "width": SIDE}
    return [BitImageProcessorPil(size=side, crop_size=side)] if type(teacher).__name__ in VISION else []


def floats(model: PreTrainedModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.is_floating_point())


def exported(folder: Path, model: PreTrainedModel) -> str:
    """Whether the ONNX export of the student in `folder` is its equal. Raises whatever export and verify raise."""
    export(folder, "onnx")
    try:
        report, inputs = verify(folder, write=False), inputs_of(model)
        want, got = answers(model, inputs)[0], OnnxModel(folder, threads=1)(**inputs)
        got = next(iter(got.values())) if isinstance(got, dict) else got
    except (ValueError, OSError) as error:  # what was written has to run
        return f"{FAULT}: {first_line(error)[:LONGEST]}"
    for name, part in report.items():
        if isinstance(part, dict) and part.get("agrees") is False:
            return f"{FAULT}: {name} disagrees: {part.get('error') or reasons(part)}"
    if got.shape != want.shape:
        return f"{FAULT}: the graph answers {tuple(got.shape)}, the model {tuple(want.shape)}"
    mask = inputs.get("attention_mask")
    if mask is not None and mask.shape == want.shape[:2]:  # what stands at padding is nobody's answer
        want, got = want[mask.bool()], got[mask.bool()]
    apart = float((got - want).abs().max() / want.abs().max())
    return YES if apart < FAR else f"{FAULT}: the graph answers otherwise, by {apart:.2g}"


def reasons(part: dict[str, Any]) -> str:
    """What of a report of parity does not agree."""
    kinds = ("disagree", "layers_not_seen_alone")
    return "; ".join(f"{kind} {part[kind][:2]}" for kind in kinds if part.get(kind)) or str(part.get("end_to_end"))


def measure(name: str, folder: Path, bits: str = "w4a8", onnx: bool = True) -> Row:
    """One model through all steps; `folder` is to be made. Warnings, of tiny models, are left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return steps(name, folder, bits, onnx)


def steps(name: str, folder: Path, bits: str, onnx: bool) -> Row:
    row = Row(name if bits == "w4a8" else f"{name}, {bits}")
    teacher, row.share = tried(lambda: tiny(name))
    if teacher is None:
        row.share = row.share.replace(FAULT, NOT_BUILT) if "ImportError" in row.share else row.share
        return row
    student, row.share = tried(lambda: student_of(teacher, bits))
    if student is None:
        return row
    _, row.share = tried(lambda: save(student, folder, *readers(teacher)))
    loaded, row.equal = (None, "") if row.share else tried(lambda: load(folder))
    if loaded is None:
        return row
    row.share = f"{1 - floats(loaded) / floats(teacher):.2f}"
    inputs = inputs_of(teacher)
    pairs, row.equal = tried(lambda: list(zip(answers(student, inputs), answers(loaded, inputs), strict=True)))
    if pairs is not None:
        apart = max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)
        row.equal = YES if all(torch.equal(a, b) for a, b in pairs) else f"by {apart:.1g}"
        row.equal = row.equal if apart < FAR else f"{FAULT}: {row.equal}"
    if onnx:
        answer, why = tried(lambda: exported(folder, loaded))
        row.onnx = answer or why
    return row


def bits_of(name: str) -> tuple[str, ...]:
    """What a class is rounded to; inputs stay floats where calibration, which asks for logits, does not reach."""
    if name in NO_LOGITS:
        return ("w4a16",)
    return ("w4a8", "w2a8") if name in TWICE else ("w4a8",)


def measured(names: list[str], onnx: bool = True) -> list[Row]:
    rows = []
    for name in names:
        for bits in bits_of(name):
            with tempfile.TemporaryDirectory() as temporary:
                rows.append(measure(name, Path(temporary) / "model", bits, onnx))
            print(*rows[-1].cells(), sep=" | ", file=sys.stderr, flush=True)
    return rows


def table(rows: list[Row]) -> str:
    """Markdown. A row that ends early has its reason in the column where it ended."""
    lines = ["| class | share | bit-equal | ONNX |", "|---|---|---|---|"]
    lines += ["| " + " | ".join(cell.replace("|", "/") for cell in row.cells()) + " |" for row in rows]
    return "\n".join(lines)


def counted(rows: list[Row]) -> str:
    equal, onnx = (sum(getattr(row, column) == YES for row in rows) for column in ("equal", "onnx"))
    refused = sum(any(cell.startswith(REFUSED) for cell in row.cells()) for row in rows)
    faults = sum(len(row.faults) for row in rows)
    return f"{len(rows)} rows: {equal} bit-equal, {onnx} exported; {refused} with a refusal, {faults} faults."


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="classes; default: all")
    parser.add_argument("--output", type=Path, help="a page of markdown")
    parser.add_argument("--no-onnx", action="store_true", help="do not export")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    rows = measured(args.names or [*TEXT, *VISION], not args.no_onnx)
    page = HEAD.format(version=transformers.__version__)
    for title, names in {"Text": TEXT, "Vision": VISION}.items():
        if part := [row for row in rows if row.name.split(",")[0] in names]:
            page += f"## {title}\n\n{counted(part)}\n\n{table(part)}\n\n"
    if args.output:
        args.output.write_text(page.rstrip() + "\n")
    print(page if not args.output else counted(rows))
    return 1 if any(row.faults for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
