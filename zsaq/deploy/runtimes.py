"""Where a student runs, one row each: what writes it, checks it, times it, and what that needs.

`export`, `zsaq.deploy.parity.verify` and `zsaq.deploy.bench.bench` go over this one table. A new runtime is a row and
the functions that the row names.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from torch import Tensor
from transformers import PreTrainedModel

from zsaq.atomic import atomic_folder, check_room
from zsaq.deploy import checks, generation, timing
from zsaq.deploy.compressed.write import to_compressed
from zsaq.deploy.gptq.write import to_gptq
from zsaq.deploy.onnx.write import BLOCKS, to_onnx
from zsaq.deploy.openvino.check import verify_openvino
from zsaq.deploy.openvino.write import to_openvino
from zsaq.io.added import sealed_export, write_export
from zsaq.io.checksums import fingerprint, sealed_files
from zsaq.io.saving import weight_bytes
from zsaq.quiet import quiet

Batches = list[dict[str, Tensor]]


def to_gguf(source: Path, target: Path, like: str | Path | None = None) -> dict[str, Any]:
    from zsaq.deploy.gguf.write import to_gguf as write  # needs its own package

    return write(source, target, like)


def verify_gguf(model: PreTrainedModel, folder: Path, batches: Batches) -> dict[str, Any]:
    from zsaq.deploy.gguf.check import verify_gguf as check

    return check(model, folder, batches)


def written_by_llama(bench: timing.Bench) -> timing.Timed:
    """Raises ValueError where there is no export, or one of another student."""
    from zsaq.deploy.gguf.serving import LlamaServer
    from zsaq.deploy.gguf.write import FILE

    place = bench.folder / "gguf"
    if not (place / FILE).is_file():
        raise ValueError(f"there is no export: zsaq export {bench.folder} --to gguf")
    sealed_export(place)
    server = LlamaServer(place / FILE, context=512, threads=bench.threads)
    return timing.Timed(server.write, (place / FILE).stat().st_size)


@final
@dataclass(frozen=True)
class Runtime:
    """One runtime. `name`: in reports; `place`: where its files lie in the student's folder, "" if it reads the
    student's own; `needs`: packages beside ours, whose versions reports tell.

    `write(source, target)` makes the folder `target` and answers facts; that of ONNX also takes a size of images.
    `check(model, folder, batches)` compares what is deployed in the student's `folder` with the student, see
    `zsaq.deploy.checks`; `time(bench)` answers what runs a batch, and the bytes on disk, see `zsaq.deploy.timing`;
    `generate(bench)` what writes text, likewise, see `zsaq.deploy.generation`. None is what a runtime does not have.
    """

    name: str
    place: str = ""
    needs: tuple[str, ...] = ()
    write: Callable[..., dict[str, Any]] | None = None
    check: Callable[[PreTrainedModel, Path, Batches], dict[str, Any]] | None = None
    time: Callable[[timing.Bench], timing.Timed] | None = None
    generate: Callable[[timing.Bench], timing.Timed] | None = None

    @property
    def ours(self) -> bool:
        """Whether it runs the student's own codes, and is no peer."""
        return self.check is not None


ONNX: Final = ("onnx", "onnxscript", "onnxruntime")
OPENVINO: Final = ("openvino", "onnx", "onnxscript")
RUNTIMES: Final = (
    Runtime(timing.BASE, time=timing.in_torch(timing.floats), generate=generation.in_torch(timing.floats)),
    Runtime("torch bf16", time=timing.in_torch(timing.bf16), generate=generation.in_torch(timing.bf16)),
    Runtime("onnxruntime fp32", needs=ONNX, time=timing.fp32_onnx),
    Runtime("onnxruntime dynamic int8", needs=ONNX, time=timing.dynamic_onnx),
    Runtime("torchao int8", needs=("torchao",), time=timing.in_torch(timing.int8)),
    Runtime(
        "bitsandbytes nf4",
        needs=("bitsandbytes",),
        time=timing.in_torch(timing.nf4),
        generate=generation.in_torch(timing.nf4),
    ),
    Runtime(
        "zsaq torch",
        check=checks.verify_loaded,
        time=timing.in_torch(timing.packed),
        generate=generation.in_torch(timing.packed),
    ),
    Runtime(timing.OURS, "onnx", ONNX, to_onnx, checks.verify_onnx, timing.exported),
    Runtime("zsaq onnx, in blocks", f"onnx/{BLOCKS}", ONNX, None, checks.verify_blocks, timing.blocks_onnx),
    Runtime("zsaq openvino", "openvino", OPENVINO, to_openvino, verify_openvino, timing.openvino),
    Runtime(
        "compressed-tensors", "compressed-tensors", ("compressed-tensors",), to_compressed, checks.verify_compressed
    ),
    Runtime("gguf", "gguf", ("gguf", "xllamacpp"), to_gguf, verify_gguf, generate=written_by_llama),
    Runtime("gptq", "gptq", (), to_gptq, checks.verify_gptq),
)


def formats() -> dict[str, Runtime]:
    """The runtimes that have a format of their own, by the name of its folder: what `export` writes."""
    return {runtime.place: runtime for runtime in RUNTIMES if runtime.write is not None}


def absent(place: Path) -> None:
    """Raises ValueError for what exists."""
    if os.path.lexists(place):
        raise ValueError(f"{place} exists; remove it or give another target")


@quiet()
def export(
    source: str | Path, to: str, target: str | Path | None = None, size: tuple[int, int] | None = None,
    like: str | Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write the saved student in the folder `source` for another runtime; returns facts about what was written.

    `to`: "onnx", for ONNX Runtime; "openvino", for text models of static inputs; "compressed-tensors", for stock
    transformers, and vLLM where it has the kernels; "gptq", for what reads GPTQ's checkpoints (transformers, vLLM,
    SGLang, onnxruntime-genai); "gguf", for llama.cpp, where `like` is a GGUF of the same model whose tokenizer and
    description are taken.
    `target` is a new folder, by default one called like the format within `source`. `size`: height and width of the
    images that an ONNX graph takes, by default as `zsaq.io.inputs.image_shape` tells. The facts also go into the
    folder's export.json, with the fingerprint of the student and the hashes of all that was written. The folder appears
    whole or not at all. Raises ValueError for another format, a size for one that has none, a source that is no folder,
    an existing target, a manifest that does not match, a rule that the runtime does not have, by the layer's name, and
    a model that it cannot run.
    """
    if to not in formats():
        raise ValueError(f"to is {to!r}; give one of {', '.join(formats())}")
    if size is not None and to != "onnx":
        raise ValueError(f"size is {size}, and only an ONNX graph is of one size of images: leave it out for {to}")
    if like is not None and to != "gguf":
        raise ValueError(f"like is {like}, and only a GGUF is written like another: leave it out for {to}")
    source = Path(source)
    if not source.is_dir():
        raise ValueError(f"{source} is no folder; give the folder of a saved student")
    place = source / to if target is None else Path(target)
    absent(place)
    sealed_files(source)
    check_room(place, weight_bytes(source))
    write = formats()[to].write
    assert write is not None
    with atomic_folder(place, absent) as partial:
        further = [each for each in (size, like) if each is not None]
        facts = write(source, partial, *further)
        write_export(partial, facts, fingerprint(source))
    return facts
