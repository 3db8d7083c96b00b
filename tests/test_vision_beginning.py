"""Methods of fine-tuning that begin with a student of one pass."""

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from test_vision_methods import FEW, highest, toy
from vision_toys import images
from zsaq import Loop
from zsaq.method import Budget
from zsaq.vision.methods import METHODS
from zsaq.vision.onepass import onepass
from zsaq.vision.presets import preset_config


def variances(model: nn.Module) -> list[Tensor]:
    return [m.running_var for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.running_var is not None]


@pytest.mark.parametrize(
    "name", ["gdfq", "gdfq-ait", "adadfq", "hast", "synq", pytest.param("texq", marks=pytest.mark.slow)]
)
def test_a_method_may_begin_with_a_student_of_one_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method, job = METHODS[name], toy("resnet")
    config = preset_config("w4a4", "uniform", job.teacher, job.spec)
    start = onepass(job.teacher, config, job.spec, {"pixel_values": images(4, 32)})
    held, norms = highest(start), [value.clone() for value in variances(start)]
    monkeypatch.setattr("zsaq.vision.rows.onepass", lambda *args, **options: start)
    budget = Budget.of(method, "light", {count: FEW[count] for count in method.budgets} | {"onepass": True})
    student = method.fit(job, config, budget, 0, Loop(Accelerator(cpu=True)))
    assert student is start and highest(student) == held
    own, now = variances(job.teacher), variances(student)
    assert all(map(torch.equal, norms, now)) and not all(map(torch.equal, own, now))
