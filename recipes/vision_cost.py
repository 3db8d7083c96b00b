"""Seconds of an inundated step against the plain step, on a CIFAR ResNet and fixed random images.

    python recipes/vision_cost.py --teacher resnet20.safetensors --steps 20

A step is the teacher's and student's forward, the student's backward and SGD; both kinds are timed in turn, in one
process, and the medians compared. Processor time is given too: it leaves out what other processes took.
"""

import argparse
import json
import time
from collections.abc import Callable
from statistics import median

import torch
from cifar import FRAME, load
from torch import Tensor

from zsaq import KL, Grid, Pair, QuantConfig, Wrapper, quantize_model
from zsaq.inundation import GradientInundation, weight_codes
from zsaq.vision.models import classifier


def timed(do: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Seconds on the clock and of the processor."""
    begin, busy = time.perf_counter(), time.process_time()
    do()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin, time.process_time() - busy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--batch_size", type=int, default=200)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(args.seed)
    teacher = classifier(load(args.teacher)).to(device).requires_grad_(False)
    config = QuantConfig(weight=Grid(args.bits, symmetric=False), ranges="minmax")
    batch = {"pixel_values": torch.randn(args.batch_size, FRAME.channels, FRAME.size, FRAME.size, device=device)}
    objective = KL(20.0)

    def stepper(inundated: bool) -> tuple[torch.optim.Optimizer | Wrapper, Callable[[], Tensor]]:
        student = quantize_model(teacher, config)
        sgd = torch.optim.SGD(student.parameters(), args.lr, momentum=0.9, nesterov=True)

        def closure() -> Tensor:
            sgd.zero_grad()
            loss = objective(Pair(teacher, student, batch))
            loss.backward()
            return loss.detach()

        return (GradientInundation(sgd, weight_codes(student), 1e-3) if inundated else sgd), closure

    kinds = {"plain": stepper(False), "inundated": stepper(True)}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
    for _ in range(args.steps + 1):
        for name, (optimizer, closure) in kinds.items():
            seconds[name].append(timed(lambda o=optimizer, c=closure: o.step(c), device))  # type: ignore[arg-type]
    told: dict[str, object] = {}
    for i, clock in enumerate(("seconds", "processor seconds")):
        middle = {name: median(value[i] for value in values[1:]) for name, values in seconds.items()}
        told[clock] = {name: round(value, 4) for name, value in middle.items()}
        told[f"{clock}: inundated / plain"] = round(middle["inundated"] / middle["plain"], 3)
    optimizer = kinds["inundated"][0]
    assert isinstance(optimizer, GradientInundation)
    told |= optimizer.diagnostics() | {"threads": torch.get_num_threads(), "device": device.type} | vars(args)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
