"""What vision's steps cost, on a CIFAR ResNet and random images: seconds, and each against the step that it extends.

    python -m recipes.benchmarks.vision_cost --teacher resnet20.safetensors --steps 20

Pairs of steps are timed in turn, in one process, and the medians compared: SGD, plain and with gradient inundation (the
teacher's and student's forward, the student's backward); HAST's step, and SynQ's, which filters the images and adds
activation maps and easy labels. Processor time is given too: it leaves out what other processes took. What images cost
tells `image_makers`.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn

from zsaq import KL, Batch, Objective, Pair, Wrapper, calibrate, quantize_model
from zsaq.script import positive, told
from zsaq.train.inundation import GradientInundation, weight_codes
from zsaq.train.objectives import Sum
from zsaq.vision import presets
from zsaq.vision.losses.labels import labelled
from zsaq.vision.models import classifier
from zsaq.vision.papers.gdfq import sgd
from zsaq.vision.papers.hast import hast_objective
from zsaq.vision.papers.synq import filtered, synq_objective
from zsaq.vision.sources.crops import views

with told():
    from recipes.examples.cifar import SPEC, load_resnet

Clock = tuple[float, float]  # seconds on the clock and of the processor


def timed(do: Callable[[], object], device: torch.device) -> Clock:
    begin, busy = time.perf_counter(), time.process_time()
    do()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin, time.process_time() - busy


def stepper(
    teacher: nn.Module, student: nn.Module, batch: Callable[[], Batch], objective: Objective, inundated: bool = False
) -> Callable[[], object]:
    """A step of SGD on the next batch."""
    total = objective if isinstance(objective, Sum) else 1.0 * objective
    plain = sgd(student, 1e-5)
    optimizer: torch.optim.Optimizer | Wrapper = plain
    if inundated:
        optimizer = GradientInundation(plain, weight_codes(student), 1e-3)

    def step() -> None:
        pair = Pair(teacher, student, batch(), total.captures)

        def closure() -> Tensor:
            plain.zero_grad()
            loss = total(pair)
            loss.backward()
            return loss.detach()

        optimizer.step(closure)  # type: ignore[arg-type]  # torch says float, and takes tensors

    return step


def compare_speed(kinds: dict[str, Callable[[], object]], steps: int, device: torch.device) -> dict[str, float]:
    """Seconds of either, and the second's over the first's; the first round warms up and is left out."""
    seconds: dict[str, list[Clock]] = {name: [] for name in kinds}
    for _ in range(steps + 1):
        for name, step in kinds.items():
            seconds[name].append(timed(step, device))
    metrics: dict[str, float] = {}
    for i, clock in enumerate(("seconds", "processor seconds")):
        first, second = (median(each[i] for each in seconds[name][1:]) for name in kinds)
        metrics |= {f"{name}, {clock}": round(value, 4) for name, value in zip(kinds, (first, second), strict=True)}
        metrics[f"{' : '.join(reversed(kinds))}, {clock}"] = round(second / first, 3)
    return metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--bits", default="w4a4")
    parser.add_argument("--batch_size", type=positive, default=200)
    parser.add_argument("--steps", type=positive, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(args.seed)
    teacher = classifier(load_resnet(args.teacher)).to(device).requires_grad_(False)
    noise = torch.randn(args.batch_size, SPEC.channels, SPEC.size, SPEC.size, device=device)
    images = labelled(teacher, {"pixel_values": noise})
    start = calibrate(quantize_model(teacher, presets.uniform(args.bits, teacher)), [images])

    def kind(objective: Objective, cutoff: float | None, inundated: bool = False) -> Callable[[], object]:
        stream = views(images, args.batch_size, args.seed)
        return stepper(teacher, copy.deepcopy(start), lambda: filtered(next(stream), cutoff), objective, inundated)

    kinds = {"plain": kind(KL(20.0), None), "inundated": kind(KL(20.0), None, True)}
    metrics: dict[str, object] = dict(compare_speed(kinds, args.steps, device))
    clear = filtered(images, 0.25)
    of_synq = synq_objective(teacher, clear, labels=0.5, difficulty=0.7, maps=50.0, attention=1000.0, epsilon=0.01)
    kinds = {"hast": kind(hast_objective(teacher, 1000.0, 0.01), None), "synq": kind(of_synq, 0.25)}
    metrics |= compare_speed(kinds, args.steps, device)
    print(json.dumps(metrics | {"threads": torch.get_num_threads(), "device": device.type} | vars(args)))


if __name__ == "__main__":
    with told():
        main()
