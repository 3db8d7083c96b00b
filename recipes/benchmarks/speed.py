"""How fast a shape is, without its weights: a random model, quantized by rounding, exported and timed on this machine.

    python recipes/benchmarks/speed.py bert-base --bits w2a8e4 --output_dir outputs/speed-bert
    python recipes/benchmarks/speed.py resnet-18 --bits w4a4 --output_dir outputs/speed-resnet

The folder then holds the student, its ONNX export and bench.json; `zsaq bench DIR` repeats the timing. Scores of random
weights mean nothing and are not taken.
"""

import argparse
import dataclasses
import json

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
)

from zsaq import QuantConfig, calibrate, export, quantize_model, save
from zsaq.deploy.bench import bench
from zsaq.script import positive, told
from zsaq.vision.presets import uniform


def bert_base(bits: str) -> PreTrainedModel:
    teacher = BertForSequenceClassification(BertConfig()).eval()
    return quantize_model(teacher, dataclasses.replace(QuantConfig.parse(bits), ranges="minmax"))


def resnet_18(bits: str) -> PreTrainedModel:
    """Preset `uniform`; statistics and ranges are those of noise."""
    config = ResNetConfig(hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic")
    teacher, noise = ResNetForImageClassification(config).train(), torch.randn(4, 3, 224, 224)
    for module in teacher.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        teacher(pixel_values=noise)
    teacher.eval()
    return calibrate(quantize_model(teacher, uniform(bits, teacher)), [{"pixel_values": noise}])


BUILDERS = {"bert-base": bert_base, "resnet-18": resnet_18}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=list(BUILDERS))
    parser.add_argument("--bits", required=True)
    parser.add_argument("--repeats", type=positive, default=10)
    parser.add_argument("--output_dir", required=True)
    args = parser.parse_args()
    torch.manual_seed(0)
    folder = save(BUILDERS[args.shape](args.bits), args.output_dir)
    export(folder, "onnx")
    measured = bench(folder, repeats=args.repeats, write=True)
    for row in measured["rows"]:
        faster = row["faster"]
        times = "  ".join(f"{shape} {ms['best']:.1f} ms ({faster[shape]:.2f}x)" for shape, ms in row["ms"].items())
        print(f"{row['runtime']:26} {row['bytes'] / 1e6:7.1f} MB ({row['smaller']:.1f}x)  {times}")
    print(json.dumps({"left_out": measured["left_out"], "slower": measured["slower"]}))


if __name__ == "__main__":
    with told():
        main()
