"""What tests of training share: plain optimizers, a loop without a schedule, and what a run wrote."""

import json
from pathlib import Path

import torch
from torch import nn

from zsaq import Loop, QuantConfig, parameter_groups

CONFIG = QuantConfig.parse("w2a8")


def plain(student: nn.Module, lr: float = 1e-2) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameter_groups(student, lr), lr, weight_decay=0.0)


def sgd(student: nn.Module) -> torch.optim.SGD:
    """Adam would blow up the rounding of gradients that are almost zero; where runs are compared, steps are plain."""
    return torch.optim.SGD(student.parameters(), 0.05)


def constant(**options) -> Loop:
    return Loop(schedule="constant", warmup=0.0, **options)


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def logged(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "distill.jsonl").read_text().splitlines()]
