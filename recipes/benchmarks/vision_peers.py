"""A net of ImageNet at 8 bits beside other tools, on the same calibration images, none of which is real.

    PYTHONPATH=recipes python -m recipes.benchmarks.vision_peers lite0 model.safetensors pictures.parquet --size 128

`--images`: safetensors with pixel_values [N, 3, S, S] in normalised space, as those of a synthesis; default: noise.
Rows: the teacher; `rtn` of zsaq under the preset brecq, W8A8; and ONNX Runtime's `quantize_static` (QDQ, a scale a
channel, min-max), all operators that it knows, or convolutions alone. The protocols differ: the peer folds BatchNorm
into the convolutions first, and rounds the image, what operators put out and biases too; brecq rounds inputs of layers,
leaves the image in floats, and searches the scales of weights. Each row is measured in the runtime that it is made for:
torch, or ONNX Runtime.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from zsaq import calibrate, quantize_model
from zsaq.script import positive, told
from zsaq.vision.presets import brecq

with told():
    from examples.imagenet import NETS, spec_of, stream

Answer = Callable[[Tensor], Tensor]


class Logits(nn.Module):
    """The logits alone, for tools that take tensors."""

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self.teacher = teacher

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.teacher(pixel_values=pixel_values).logits


def by_zsaq(teacher: nn.Module, images: Tensor) -> Answer:
    config = brecq("w8a8", teacher, spec_of(images.shape[-1]))
    return Logits(calibrate(quantize_model(teacher, config), [{"pixel_values": part} for part in images.split(32)]))


def by_onnxruntime(teacher: nn.Module, images: Tensor, kinds: list[str] | None = None) -> Answer:
    from onnxruntime import InferenceSession
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.parts: Iterator[Tensor] = iter(images.split(1))

        def get_next(self) -> Any:
            part = next(self.parts, None)
            return None if part is None else {"pixel_values": part.numpy()}

    with tempfile.TemporaryDirectory() as temporary:
        plain, ready, done = (str(Path(temporary) / f"{name}.onnx") for name in ("plain", "ready", "done"))
        batch = {"pixel_values": {0: torch.export.Dim("batch", min=1, max=4096)}}
        torch.onnx.export(
            Logits(teacher), (images[:2],), plain, input_names=["pixel_values"], dynamic_shapes=batch, dynamo=True,
            external_data=False, verbose=False,
        )  # fmt: skip
        quant_pre_process(plain, ready, skip_symbolic_shape=True)
        quantize_static(
            ready, done, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, op_types_to_quantize=kinds
        )
        session = InferenceSession(done, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(np.asarray(session.run(None, {"pixel_values": x.numpy()})[0]))


WAYS: dict[str, Callable[[nn.Module, Tensor], Answer]] = {
    "teacher": lambda teacher, images: Logits(teacher),
    "zsaq, rtn, brecq": by_zsaq,
    "onnxruntime": by_onnxruntime,
    "onnxruntime, convolutions": partial(by_onnxruntime, kinds=["Conv"]),
}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("net", choices=NETS)
    parser.add_argument("weights", help="a state dict in safetensors")
    parser.add_argument("test", help="a parquet file with test images")
    parser.add_argument("--images", type=Path, help="calibration images: safetensors with pixel_values (noise)")
    parser.add_argument("--count", type=positive, default=64, help="how many images of noise")
    parser.add_argument("--limit", type=positive, help="how many test images, if not all")
    parser.add_argument("--size", type=positive, default=224)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    args = parser.parse_args()
    net = NETS[args.net]
    noise = torch.randn(args.count, 3, args.size, args.size, generator=torch.Generator().manual_seed(0))
    images = noise if args.images is None else load_file(args.images)["pixel_values"]
    shown = list(stream(args.test, net.processor(args.size), args.limit))
    for way in args.ways:
        begin, hits = time.process_time(), 0
        answer = WAYS[way](net.load(args.weights, args.size), images)
        seconds = time.process_time() - begin
        for batch in shown:
            hits += int((answer(batch["pixel_values"]).argmax(1) == batch["labels"]).sum())
        top1 = hits / sum(len(batch["labels"]) for batch in shown)
        print(json.dumps({"way": way, "top1": top1, "processor seconds": round(seconds, 1)}), flush=True)


if __name__ == "__main__":
    with told():
        main()
