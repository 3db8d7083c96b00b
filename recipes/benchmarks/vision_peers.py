"""A net of ImageNet at 8 bits beside other tools, on the same calibration images, none of which is real.

    PYTHONPATH=recipes python -m recipes.benchmarks.vision_peers lite0 model.safetensors pictures.parquet --size 128

`--images`: safetensors with pixel_values [N, 3, S, S] in normalised space, as those of a synthesis; default: noise.
A row a way; one that fails, as for a package that is not here, says why, and the others go on. What each rounds:

zsaq         `rtn` or one pass, under the preset brecq: weights, a searched scale a channel, and inputs of layers; not
             the image. `--bits` is for these two alone; all others are at W8A8.
onnxruntime  `quantize_static` (QDQ, a scale a channel, min-max), all operators that it knows or convolutions alone:
             BatchNorm folded first; weights, the image, what operators put out, biases too.
nncf         `nncf.quantize` as it comes: weights, symmetric, a scale a channel; the image and what ReLU6, sums, linear
             bottlenecks and the pooling put out, symmetric, a scale a tensor, but a scale a channel before depthwise
             convolutions. The logits and biases stay in floats; biases are corrected, the fast way.
             It compiles kernels at first use: that takes a compiler, and is cut off after 60 seconds unless
             NNCF_EXTENSION_LOAD_TIMEOUT says otherwise. Its slow way (fast_bias_correction=False) is refused for a
             torch model, so that it takes the exported graph, BatchNorm folded.
mct          Sony's model_compression_toolkit as it comes, for its default target IMX500: BatchNorm folded; weights,
             symmetric, a scale a channel; the image, what ReLU6, sums, linear bottlenecks and the pooling put out, and
             the logits: a scale a tensor, a power of two; both chosen by squared error. Biases stay in floats and are
             corrected. It needs a torchvision that loads. "its own images": as many as the others are given, by its
             data_generation as it comes, which asks for 500 steps (`--steps`).

Each row is measured in the runtime that it is made for: torch, or ONNX Runtime. Seconds of the processor are of the
quantization, of this process alone.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from zsaq import calibrate, quantize_model
from zsaq.script import positive, told
from zsaq.vision.onepass import onepass
from zsaq.vision.presets import bits, brecq

with told():
    from examples.imagenet import NETS, Net, spec_of, stream

    from zsaq.eval.imagenet import MEAN

Answer = Callable[[Tensor], Tensor]


class Logits(nn.Module):
    """The logits alone, for tools that take tensors."""

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self.teacher = teacher
        self.eval()

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.teacher(pixel_values=pixel_values).logits


@dataclass(frozen=True)
class Case:
    """What every way is given."""

    net: Net
    teacher: nn.Module
    images: Tensor
    bits: str
    steps: int


def by_rtn(case: Case) -> Answer:
    config = brecq(case.bits, case.teacher, spec_of(case.images.shape[-1]))
    batches = [{"pixel_values": part} for part in case.images.split(32)]
    return Logits(calibrate(quantize_model(case.teacher, config), batches))


def by_onepass(case: Case) -> Answer:
    spec = spec_of(case.images.shape[-1])
    config = brecq(case.bits, case.teacher, spec)
    return Logits(onepass(case.teacher, config, spec, {"pixel_values": case.images}))


def exported(case: Case, path: Path) -> Path:
    batch = {"pixel_values": {0: torch.export.Dim("batch", min=1, max=4096)}}
    torch.onnx.export(
        Logits(case.teacher), (case.images[:2],), path, input_names=["pixel_values"], dynamic_shapes=batch, dynamo=True,
        external_data=False, verbose=False,
    )  # fmt: skip
    return path


def in_onnxruntime(model: bytes) -> Answer:
    from onnxruntime import InferenceSession

    session = InferenceSession(model, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(np.asarray(session.run(None, {"pixel_values": x.numpy()})[0]))


def by_onnxruntime(case: Case, kinds: list[str] | None = None) -> Answer:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.parts: Iterator[Tensor] = iter(case.images.split(1))

        def get_next(self) -> Any:
            part = next(self.parts, None)
            return None if part is None else {"pixel_values": part.numpy()}

    with tempfile.TemporaryDirectory() as temporary:
        plain, ready, done = (Path(temporary) / f"{name}.onnx" for name in ("plain", "ready", "done"))
        quant_pre_process(exported(case, plain), ready, skip_symbolic_shape=True)
        quantize_static(
            ready, done, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, op_types_to_quantize=kinds
        )
        return in_onnxruntime(done.read_bytes())


def by_nncf(case: Case) -> Answer:
    import nncf  # pyright: ignore[reportMissingImports]

    shown = nncf.Dataset(case.images.split(1))
    return nncf.quantize(Logits(case.teacher), shown, subset_size=len(case.images))


def by_nncf_slowly(case: Case) -> Answer:
    import nncf  # pyright: ignore[reportMissingImports]
    import onnx

    with tempfile.TemporaryDirectory() as temporary:
        graph = onnx.load(exported(case, Path(temporary) / "plain.onnx"))
    shown = nncf.Dataset([{"pixel_values": part.numpy()} for part in case.images.split(1)])
    done = nncf.quantize(graph, shown, subset_size=len(case.images), fast_bias_correction=False)
    return in_onnxruntime(done.SerializeToString())


def by_mct(case: Case, shown: Sequence[Tensor] | None = None) -> Answer:
    import model_compression_toolkit as mct  # pyright: ignore[reportMissingImports]

    parts = case.images.split(16) if shown is None else shown
    model, _ = mct.ptq.pytorch_post_training_quantization(
        Logits(case.teacher), lambda: iter([[part.numpy()] for part in parts])
    )
    return model


def by_mct_alone(case: Case) -> Answer:
    from model_compression_toolkit import data_generation  # pyright: ignore[reportMissingImports]

    kinds = data_generation.ImageNormalizationType
    config = data_generation.get_pytorch_data_generation_config(
        n_iter=case.steps, data_gen_batch_size=min(32, len(case.images)),
        image_normalization_type=kinds.TORCHVISION if case.net.mean == MEAN else kinds.KERAS_APPLICATIONS,
    )  # fmt: skip
    with torch.enable_grad():
        torch.manual_seed(0)
        shown = data_generation.pytorch_data_generation_experimental(
            Logits(case.teacher), len(case.images), case.images.shape[-1], config
        )
    return by_mct(case, torch.cat(shown).detach().split(16))


WAYS: dict[str, Callable[[Case], Answer]] = {
    "teacher": lambda case: Logits(case.teacher),
    "zsaq, rtn, brecq": by_rtn,
    "zsaq, onepass, brecq": by_onepass,
    "onnxruntime": by_onnxruntime,
    "onnxruntime, convolutions": partial(by_onnxruntime, kinds=["Conv"]),
    "nncf": by_nncf,
    "nncf, onnx, slow bias correction": by_nncf_slowly,
    "mct": by_mct,
    "mct, its own images": by_mct_alone,
}


def measured(way: str, case: Case, shown: list[dict[str, Tensor]]) -> dict[str, Any]:
    begin, hits = time.process_time(), 0
    answer = WAYS[way](case)
    seconds = time.process_time() - begin
    for batch in shown:
        hits += int((answer(batch["pixel_values"]).argmax(1) == batch["labels"]).sum())
    return {"top1": hits / sum(len(batch["labels"]) for batch in shown), "processor seconds": round(seconds, 1)}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("net", choices=NETS)
    parser.add_argument("weights", help="a state dict in safetensors")
    parser.add_argument("test", help="a parquet file with test images")
    parser.add_argument("--images", type=Path, help="calibration images: safetensors with pixel_values (noise)")
    parser.add_argument("--count", type=positive, default=64, help="how many images of noise")
    parser.add_argument("--bits", default="w8a8", help="of zsaq's ways")
    parser.add_argument("--steps", type=positive, default=500, help="of mct's own images")
    parser.add_argument("--limit", type=positive, help="how many test images, if not all")
    parser.add_argument("--size", type=positive, default=224)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    args = parser.parse_args()
    bits(args.bits)  # before anything is measured
    net = NETS[args.net]
    noise = torch.randn(args.count, 3, args.size, args.size, generator=torch.Generator().manual_seed(0))
    images = noise if args.images is None else load_file(args.images)["pixel_values"]
    shown = list(stream(args.test, net.processor(args.size), args.limit))
    for way in args.ways:
        case = Case(net, net.load(args.weights, args.size), images, args.bits, args.steps)
        try:
            with redirect_stdout(sys.stderr):  # peers talk
                row = measured(way, case, shown)
        except Exception as error:  # whatever stops a peer is what there is to tell of it
            if way.startswith(("teacher", "zsaq")):
                raise
            row = {"failed": " ".join(f"{type(error).__name__}: {error}".split())}
        print(json.dumps({"way": way} | row), flush=True)


if __name__ == "__main__":
    with told():
        main()
