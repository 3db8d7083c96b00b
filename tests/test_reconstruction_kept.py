"""What of a block is kept: norms that learn, and what it was, where learning leaves it further from the teacher's."""

import copy
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from test_reconstruction import batches
from vision_toys import cnn
from zsaq import Grid, QuantConfig, quantize_model
from zsaq.quant.layers import quant_layers
from zsaq.train.calls import Calls
from zsaq.train.one_pass import one_pass
from zsaq.train.optim import NotFinite
from zsaq.train.pair import run_model
from zsaq.train.reconstruction import reconstruct
from zsaq.vision.models import classifier


def whole(student: nn.Module, teacher: nn.Module, name: str, inputs: nn.Module) -> float:
    """The sum over channels of a block's squared error on what `inputs` hands it, the mean over all samples."""
    seen: list[Any] = []
    handle = inputs.get_submodule(name).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    target: list[Any] = []
    other = teacher.get_submodule(name).register_forward_hook(lambda module, args, out: target.append(out))
    with torch.no_grad():
        for batch in batches():
            run_model(inputs, batch)
            run_model(teacher, batch)
    handle.remove()
    other.remove()
    with torch.no_grad():
        miss = student.get_submodule(name)(torch.cat(seen)) - torch.cat(target)
    return float(miss.square().sum(1).mean())


@pytest.mark.parametrize("size", [1, 2, 4, 5])
def test_padding_does_not_count_in_what_is_missed_whatever_the_batch(size: int) -> None:
    states, counts = torch.randn(5, 6, 3), torch.ones(5, 6, dtype=torch.bool)
    states[4] *= 5
    counts[4, 1:] = False
    calls = Calls(states, torch.zeros(5, 6, 3), states, (None,), {}, counts)
    expected = float(states[counts].square().sum(1).mean())
    assert calls.missed(nn.Identity(), size, torch.device("cpu")) == pytest.approx(expected)


@pytest.mark.parametrize("fitted", [False, True])
def test_a_block_that_learning_takes_away_is_rounded_as_it_began(
    fitted: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = classifier(cnn())
    student = quantize_model(teacher, QuantConfig(weight=Grid(8, symmetric=False)))
    if fitted:
        one_pass(student, teacher, batches())
    began, name = copy.deepcopy(student), "module.layer1"
    block = [(name, teacher.get_submodule(name))]
    options: dict[str, Any] = {"batch_size": 8, "fitted": fitted, "drop": 0.0}
    reconstruct(began, teacher, batches(), block, steps=1, lr_bits=1e-9, lr_scale=1e-9, lr_step=1e-9, **options)
    capsys.readouterr()
    reconstruct(student, teacher, batches(), block, steps=20, lr_bits=1.0, **options)
    said = re.search(r"layer1: its error (\S+) became (\S+), so it is rounded as it began", capsys.readouterr().err)
    assert said and float(said[2]) > 2 * float(said[1])
    assert whole(student, teacher, name, began) == pytest.approx(float(said[1]), rel=0.02)
    codes = [layer.weight_quantizer.codes(layer.rows().flatten(1))[0] for _, layer in quant_layers(student)]
    first = [layer.weight_quantizer.codes(layer.rows().flatten(1))[0] for _, layer in quant_layers(began)]
    assert all(torch.equal(one, other) for one, other in zip(codes, first, strict=True))


NAME = "module.layer1"


def fitted_pair() -> tuple[nn.Module, nn.Module, dict[str, Any]]:
    """Teacher, a student of 2-bit inputs after one pass, and what its first block is learned with."""
    teacher = classifier(cnn())
    student = quantize_model(teacher, QuantConfig.parse("w8a2s"))
    one_pass(student, teacher, batches())
    return teacher, student, {"blocks": [(NAME, teacher.get_submodule(NAME))], "batch_size": 8, "fitted": True}


def norms_of(student: nn.Module) -> dict[str, Tensor]:
    """Gains and shifts of the first block's BatchNorms."""
    parts = {name: part for name, part in student.named_modules() if isinstance(part, nn.BatchNorm2d)}
    inside = {name: part for name, part in parts.items() if name.startswith(NAME)}
    return {f"{name}.{key}": p.detach().clone() for name, part in inside.items() for key, p in part.named_parameters()}


def test_norms_learn_where_they_are_asked_to() -> None:
    errors = []
    for rate in (0.0, 3e-2):
        teacher, student, options = fitted_pair()
        inputs, before = copy.deepcopy(student), norms_of(student)
        reconstruct(student, teacher, batches(), steps=40, lr_bits=1e-9, lr_norm=rate, drop=0.0, **options)
        after = norms_of(student)
        assert before and all(torch.equal(value, after[name]) == (not rate) for name, value in before.items())
        errors.append(whole(student, teacher, NAME, inputs))
    assert errors[1] < 0.97 * errors[0]


def test_norms_that_want_no_gradient_do_not_learn() -> None:
    teacher, student, options = fitted_pair()
    for part in student.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.requires_grad_(False)
    before = norms_of(student)
    reconstruct(student, teacher, batches(), steps=3, lr_norm=1e-2, **options)
    after = norms_of(student)
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_norms_are_what_they_were_where_learning_does_harm_or_breaks(capsys: pytest.CaptureFixture[str]) -> None:
    teacher, student, options = fitted_pair()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    with pytest.raises(NotFinite, match="the loss is not finite"):
        reconstruct(student, teacher, batches(), steps=6, lr_norm=1e30, **options)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    reconstruct(student, teacher, batches(), steps=6, lr_norm=30.0, **options)
    assert "so it is rounded as it began" in capsys.readouterr().err
    after = norms_of(student)
    assert all(torch.equal(before[name], value) for name, value in after.items())
