"""Images made per second, by everything that makes them for a convolutional net, against its layers alone.

    PYTHONPATH=recipes python -m recipes.benchmarks.image_makers cifar resnet20.safetensors
    PYTHONPATH=recipes python -m recipes.benchmarks.image_makers lite0 model.safetensors --size 128 --images 16

A line a maker: milliseconds of the processor for a step of one image, without what a run costs to begin (the
difference of a longer and a shorter run, over the steps between); how many times the layers' own: each convolution and
linear layer of the teacher alone, on random inputs of its shapes, forward and back to its inputs; and images a second
at the steps of effort light. Two runs differ by some per cent.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from zsaq.script import check_taken, positive, told
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.images import MAKERS, images_of
from zsaq.vision.job import ImageJob
from zsaq.vision.methods import METHODS

with told():
    from examples.cifar import SPEC, load_resnet
    from examples.imagenet import NETS, spec_of

REPEATS = 3


def seconds(do: Callable[[], object]) -> float:
    began = time.process_time()
    do()
    return time.process_time() - began


def of_layers(teacher: nn.Module, spec: ImageSpec, images: int) -> float:
    """Seconds of the processor for all convolutions and linear layers, each alone, forward and back to its inputs."""
    shapes: list[tuple[nn.Module, torch.Size]] = []
    layers = [module for module in teacher.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    handles = [
        layer.register_forward_pre_hook(lambda module, args: shapes.append((module, args[0].shape))) for layer in layers
    ]
    with torch.no_grad():
        teacher(pixel_values=torch.randn(images, spec.channels, spec.size, spec.size))
    for handle in handles:
        handle.remove()

    def once() -> None:
        for layer, shape in shapes:
            x = torch.randn(shape)
            x = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
            y: Tensor = layer(x.requires_grad_())
            torch.autograd.grad(y, x, torch.ones_like(y))

    return min(seconds(once) for _ in range(REPEATS))


def of_step(teacher: nn.Module, spec: ImageSpec, name: str, images: int, steps: int) -> float:
    """Seconds of the processor for a step of all images."""

    def run(count: int) -> float:
        return seconds(lambda: images_of(ImageJob(teacher, spec), name, 0, images=images, steps=count))

    return min((run(1 + steps) - run(1)) / steps for _ in range(REPEATS))


def light_steps(name: str) -> int:
    """Of the row of that name; pyramid images are those of `onepass`."""
    return METHODS.get(name, METHODS["onepass"]).budgets["image_steps"][0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("net", choices=["cifar", *NETS])
    parser.add_argument("weights", help="a state dict in safetensors")
    parser.add_argument("--size", type=positive, default=224, help="ImageNet's nets: pixels")
    parser.add_argument("--images", type=positive, default=64, help="made at once")
    parser.add_argument("--steps", type=positive, default=4)
    args = parser.parse_args()
    check_taken(parser, None, args.net, {"cifar": (), **dict.fromkeys(NETS, ("size",))})
    torch.set_num_threads(1)
    spec = SPEC if args.net == "cifar" else spec_of(args.size)
    loaded: Any = load_resnet(args.weights) if args.net == "cifar" else NETS[args.net].load(args.weights, args.size)
    teacher = ImageJob(loaded, spec).teacher.eval().requires_grad_(False)
    alone = of_layers(teacher, spec, args.images) / args.images
    print(json.dumps({"maker": "the layers alone", "ms": round(alone * 1e3, 3)}), flush=True)
    for name in [*sorted(MAKERS.keys() - {"psaq"}), "genie"]:
        step = of_step(teacher, spec, name, args.images, args.steps) / args.images
        rate = 1 / (step * light_steps(name))
        facts = {"ms": round(step * 1e3, 3), "times the layers": round(step / alone, 2)}
        print(json.dumps({"maker": name, **facts, "images a second, light": round(rate, 3)}), flush=True)


if __name__ == "__main__":
    with told():
        main()
