"""A saved model is whole or not there: written beside its place, read back, compared, then renamed."""

import dataclasses
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NoReturn

import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from zsaq.atomic import atomic_folder
from zsaq.io.checksums import fingerprint, write_checksums
from zsaq.io.inputs import random_inputs, text_limit
from zsaq.io.loading import load
from zsaq.io.record import Record
from zsaq.io.target import check_target
from zsaq.quant.adapter import packed_state
from zsaq.quant.kept import check_kept
from zsaq.quant.layers import quant_layers
from zsaq.quant.modes import evaluating
from zsaq.quant.placing import PAINTED, PICTURES, is_log
from zsaq.quant.sharded import is_sharded
from zsaq.quiet import quiet
from zsaq.run import Results

DRAWN: Final = ("curves.png", *(f"{PICTURES}/**/{name}" for name in PAINTED))  # by zsaq
TOKENS: Final = 8
ROUNDING_NOISE: Final = 0.05  # of the largest answer: what roundings in another order may do, and no damaged layer does


def save(
    student: PreTrainedModel,
    folder: str | Path,
    *parts: Any,
    results: Results | None = None,
    files: Path | None = None,
) -> Path:
    """Save a student, or a loaded model, so that `folder` is whole or as it was; give its path.

    `parts`: tokenizer, image processor and whatever else has `save_pretrained`; `results`: of the run, written as
    results.json with the student's bytes; `files`: a folder whose logs of steps, curves.png and pictures go along; by
    default all three are those that travel with the student (`student.zsaq`). All is written to a folder beside it,
    read back, compared tensor by tensor and by the answers to random inputs, and renamed. A folder that this function
    has written is replaced whole, with all that was made of it; any other that is not empty is refused, and so is one
    where something else lies beside the student. In several processes of one run the main one alone writes and the
    others return at once; where they read the folder afterwards, they have to wait for it first
    (`accelerator.wait_for_everyone`). Of a sharded student all have to call it, and each layer is whole for a moment.
    Of several runs that save to one folder the last one wins, whole; what a killed one left goes.

    Raises ValueError for that, for a model that is not quantized, not whole, or not what its codes say
    (`zsaq.quant.kept`), and if what was saved does not come back; OSError for what the disk refuses. Warns of a model
    that reads neither text nor images, whose answers cannot be compared.
    """
    return write(student, folder, *parts, results=results, files=files)[0]


def refuse_plain(student: nn.Module, *_: Any, **__: Any) -> NoReturn:
    """What stands for the `save_pretrained` and `push_to_hub` of a student that is no model of transformers."""
    raise ValueError(
        f"{type(student).__name__} is no model of transformers, which load it again; save its state_dict(), that "
        "zsaq.quantize_model of the same net and configuration takes, or make the net a PreTrainedModel first"
    )


@quiet()
def write(
    student: PreTrainedModel, folder: str | Path, *parts: Any, results: Results | None = None, files: Path | None = None
) -> tuple[Path, Results | None]:
    """`save`; also the results as they were written, None for none."""
    if not isinstance(student, PreTrainedModel):
        refuse_plain(student)
    check_kept(student)
    if away := [name for name, tensor in student.state_dict().items() if tensor.is_meta]:
        raise ValueError(
            f"{away[0]} lies on the meta device, a device_map has offloaded it: load the model whole, and save that"
        )
    target, record = check_target(folder), vars(student).get("zsaq", Record())
    sharded = is_sharded(student)
    state = packed_state(student) if sharded else None
    parts = tuple(part for part in parts if part is not None)
    if foreign := [part for part in parts if not callable(getattr(part, "save_pretrained", None))]:
        raise ValueError(f"a {type(foreign[0]).__name__} goes along with no model: give its tokenizer or processor")
    if not is_main():
        return target, None
    parts, results, files = parts or record.parts, results or record.results, files or record.files
    with atomic_folder(target, check_target) as partial:
        partial.mkdir()
        with gathered_before(student, state):
            type(student).save_pretrained(student, partial)  # its class's own, whatever the instance was given
        for part in parts:
            part.save_pretrained(partial)
        write_checksums(partial)
        check_read_back(student, load(partial, class_of(student)), target, state)
        if files is not None:
            copy_logged(files, partial)
        if results is not None:
            saved = dataclasses.replace(results.student, bytes=weight_bytes(partial))
            rows = (*results.rows[:-1], saved)
            dataclasses.replace(results, rows=rows, fingerprint=fingerprint(partial)).write(partial)
            results = Results.read(partial)
    return target, results


def alone(student: nn.Module) -> bool:
    """Whether the main process can save it by itself; of a sharded student all have a part."""
    return not is_sharded(student)


def is_main() -> bool:
    """Whether this process writes; the others hold the same student."""
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0


def weight_bytes(folder: Path) -> int:
    """Bytes of the weights that lie in `folder`, not below it."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def copy_logged(source: Path, target: Path) -> None:
    """What a run logged and drew in the folder `source`, at the same places below `target`; nothing else goes along."""
    paths = [path for path in source.glob("*.jsonl") if is_log(path)]
    paths += [path for kind in DRAWN for path in source.glob(kind) if path.is_file()]
    for path in paths:
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)


@contextmanager
def gathered_before(student: PreTrainedModel, state: dict[str, Tensor] | None) -> Iterator[None]:
    """Inside, what is saved of a sharded student is `state`."""
    vars(student)["hf_quantizer"].state = state
    try:
        yield
    finally:
        vars(student)["hf_quantizer"].state = None


def class_of(student: PreTrainedModel) -> type[PreTrainedModel]:
    """Its class, before it was sharded."""
    return next(kind for kind in type(student).__mro__ if not issubclass(kind, FSDPModule))


def check_read_back(
    student: PreTrainedModel, again: PreTrainedModel, target: Path, state: dict[str, Tensor] | None = None
) -> None:
    """Raises ValueError unless `again`, read from the disk, holds the student's tensors and gives its answers.

    Answers are equal bit for bit, except where sums run in another order: on other devices than the CPU, in 16 bits,
    and in layers whose latent weights lie transposed (GPT-2's) or channels last. There they may be
    `ROUNDING_NOISE` apart, since a rounding near a tie may fall to the other side. Those of a sharded student, whose
    tensors were gathered as `state`, are not asked for: the main process is alone here.
    """
    wrote, read = packed_state(student) if state is None else state, packed_state(again)
    same = {key for key in wrote.keys() & read.keys() if torch.equal(wrote[key], read[key])}
    if wrong := sorted((wrote.keys() | read.keys()) - same):
        raise ValueError(f"{wrong[:8]} did not come back as saved; nothing was written to {target}")
    if state is not None:
        return
    image = student.main_input_name == "pixel_values"
    try:
        inputs = random_inputs(student, (2,) if image else (1, min(TOKENS, text_limit(student))))
        before = outputs_of(student, inputs)
    except (ValueError, TypeError) as error:
        warnings.warn(f"the answers of what was saved were not compared: {error}", stacklevel=3)
        return
    after = outputs_of(again.to(student.device), inputs)  # pyright: ignore[reportArgumentType]
    reordered = any(layer.columns_first or not layer.weight.is_contiguous() for _, layer in quant_layers(student))
    exact = before.dtype == torch.float32 and before.device.type == "cpu" and not reordered
    if not equal(before, after, 0.0 if exact else ROUNDING_NOISE):
        raise ValueError(
            f"the saved model answers otherwise than the student (by {float((before - after).abs().max()):.3g} of "
            f"{float(before.abs().max()):.3g}), though all tensors came back; nothing was written to {target}"
        )


@torch.no_grad()
def outputs_of(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    """Logits, or hidden states, in eval mode; the modes of all modules are afterwards as they were."""
    drawn = [model.device] if model.device.type == "cuda" else []
    cast = {k: v.to(model.device, model.dtype if v.is_floating_point() else None) for k, v in inputs.items()}
    with evaluating(model), torch.random.fork_rng(drawn):  # some draw in every mode, as masked autoencoders do
        torch.manual_seed(0)
        return model(**cast)[0]


def equal(before: Tensor, after: Tensor, noise: float) -> bool:
    """Bit for bit, or within `noise` of the largest; nan where there was nan."""
    return torch.allclose(before, after, rtol=0, atol=noise * float(before.abs().nan_to_num().max()), equal_nan=True)
