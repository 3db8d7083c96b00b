"""What static inputs gain: a BERT of random weights in several configurations, beside ONNX Runtime's own dynamic int8.

    python recipes/benchmarks/encoders.py bert-base --bits w2a8e4,w2a8se4 --repeats 12
    python recipes/benchmarks/encoders.py minilm --bits w2a8e4,w2a8se4 --shapes 1x16,1x128 --repeats 20

All take turns in one process, with one thread each. What is compared is the processor's time of this process, the best
of all repeats, so that other processes disturb less; a quiet machine is better still. Ranges are those of random
tokens, and scores of random weights mean nothing.
"""

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from transformers import BertConfig, BertForSequenceClassification

from zsaq import QuantConfig, calibrate, export, load, quantize_model, save
from zsaq.deploy import timing
from zsaq.deploy.runtimes import RUNTIMES
from zsaq.io.inputs import random_inputs
from zsaq.script import positive, told

SHAPES: Final[dict[str, dict[str, int]]] = {
    "bert-base": {},
    "minilm": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
}
EXPORTS: Final = tuple(runtime for runtime in RUNTIMES if runtime.place in ("onnx", "openvino"))
PEER: Final = "onnxruntime dynamic int8"


def student(teacher: Any, bits: str, folder: Path) -> Path:
    made = quantize_model(teacher, dataclasses.replace(QuantConfig.parse(bits), ranges="minmax"))
    return save(calibrate(made, [random_inputs(made, (8, 32), seed) for seed in range(2)]), folder)


def runs_of(teacher: Any, bits: list[str], work: Path) -> dict[str, timing.Timed]:
    """What is timed, and its bytes on disk. A runtime that does not take a configuration is told and left out."""
    runs: dict[str, timing.Timed] = {}
    for text in bits:
        folder = student(teacher, text, work / text)
        place = work / f"made-{text}"
        place.mkdir()
        model = load(folder, dtype=torch.float32)
        bench = timing.Bench(timing.floats_of(model), folder, place, threads=1)
        if not runs:
            runs["torch fp32"] = timing.Timed(timing.torch_run(bench.twin), 0, ())
            runs["onnxruntime fp32"] = timing.fp32_onnx(bench)
            runs[PEER] = timing.dynamic_onnx(bench)
        for runtime in EXPORTS:
            assert runtime.time is not None
            try:
                export(folder, runtime.place)
                runs[f"{runtime.name} {text}"] = runtime.time(bench)
            except ValueError as error:
                print(f"{runtime.name} {text}: {error}")
    return runs


def best(run: Callable[[], Any]) -> float:
    """Milliseconds of the processor."""
    began = time.process_time()
    run()
    return (time.process_time() - began) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=list(SHAPES))
    parser.add_argument("--bits", default="w2a8e4,w2a8se4")
    parser.add_argument("--shapes", default="1x2,1x16,1x128,8x128,16x128")
    parser.add_argument("--repeats", type=positive, default=12)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    teacher = BertForSequenceClassification(BertConfig(**SHAPES[args.model])).eval()  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory(prefix="zsaq-") as work:
        runs = runs_of(teacher, args.bits.split(","), Path(work))
        for shape in args.shapes.split(","):
            inputs = random_inputs(teacher, tuple(map(int, shape.split("x"))))
            times = {
                name: [best(lambda each=each: each.run(inputs)) for _ in range(2)][1:] for name, each in runs.items()
            }
            for _ in range(args.repeats):
                for name, each in runs.items():
                    times[name].append(best(lambda each=each: each.run(inputs)))
            for name, each in runs.items():
                ratio = min(times[name]) / min(times[PEER])
                print(f"{shape:6} {name:32} {each.bytes / 1e6:7.1f} MB {min(times[name]):8.2f} ms  {ratio:.3f}")


if __name__ == "__main__":
    with told():
        main()
