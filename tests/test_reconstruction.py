import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reference import nearest
from reference_reconstruction import search_power, soft_weight
from vision_toys import cnn, images, resnet, vit
from zsaq import Grid, Loop, MSEOptimal, QuantConfig, Quantizer, load, quantize_model
from zsaq.quant.codes import groups
from zsaq.quant.layers import quant_layers
from zsaq.quant.ranges import MinMax, Static, search
from zsaq.train.chain import Chain, beside, twin_of
from zsaq.train.pair import run_model
from zsaq.train.reconstruction import reconstruct, scaled_rate
from zsaq.train.rounding import FACTORS, LearnedStep, SoftActivation, SoftWeight
from zsaq.train.trainer import calibrate
from zsaq.vision.models import blocks, classifier

CONFIG = QuantConfig(weight=Grid(3, symmetric=False), input=Grid(4, symmetric=False, per="tensor"))
WEIGHTS = QuantConfig(weight=Grid(2, symmetric=False))


def linear(config: QuantConfig = CONFIG, width: int = 12) -> Any:
    return quantize_model(nn.Sequential(nn.Linear(width, 6)), config)


def batches(n: int = 24, size: int = 16) -> list[dict[str, Tensor]]:
    return [{"pixel_values": part} for part in images(n, size).split(10)]


def error(student: nn.Module, teacher: nn.Module, name: str) -> float:
    """Mean squared error of a block's answers in a pass of the whole models."""
    seen = []
    for model in (student, teacher):
        handle = model.get_submodule(name).register_forward_hook(lambda m, a, out: seen.append(out))
        with torch.no_grad():
            run_model(model, batches(8)[0])
        handle.remove()
    return float((seen[0] - seen[1]).square().mean())


def test_search_by_power_is_the_plain_search() -> None:
    x, grid = torch.randn(4, 30), Grid(3, symmetric=False)
    scale, zero = search(x, grid, 2.4, FACTORS)
    assert isinstance(zero, Tensor)
    for row, s, z in zip(x.tolist(), scale, zero, strict=True):
        assert (float(s), float(z)) == pytest.approx(search_power(row, 7, 2.4), rel=1e-5)


def test_a_static_range_holds_what_it_is_given() -> None:
    grid = Grid(4, symmetric=False, per="tensor")
    ranges = Static(grid)
    ranges.hold(torch.tensor([[-0.3]]), torch.tensor([[1.7]]))
    scale, zero = ranges(torch.zeros(1, 1), grid)
    assert float(scale) == pytest.approx(2.0 / 15) and zero == 2
    ranges.hold(torch.tensor([[0.0]]), torch.tensor([[3.0]]))
    assert float(ranges(torch.zeros(1, 1), grid)[0]) == torch.tensor(3.0) / 15


@pytest.mark.parametrize("grid", [Grid(4, symmetric=False), Grid(2, levels="half"), Grid(4), Grid(3, per=4)])
def test_soft_weights_start_at_the_float_weight_and_their_hard_bits_at_the_nearest(grid: Grid) -> None:
    layer = linear(QuantConfig(weight=grid))[0]
    weight = layer.weight.detach().clone()
    soft = SoftWeight(layer, joint=True)
    inside = (soft.base >= grid.low) & (soft.base < grid.high)
    assert inside.float().mean() > 0.5
    assert torch.allclose(soft(weight).view_as(soft.base)[inside], groups(weight, grid)[inside], atol=1e-6)
    searched = Quantizer(grid, MSEOptimal(groups(weight, grid), grid, power=2.4, factors=FACTORS))
    soft.harden()
    assert torch.allclose(layer.weight, searched(weight), atol=1e-6)


def test_soft_weights_are_the_plain_ones() -> None:
    layer = linear()[0]
    weight = layer.weight.detach().clone()
    soft = SoftWeight(layer, joint=True)
    start, zero = soft.scale.detach().clone(), soft.zero
    soft.requires_grad_(False).bits.add_(torch.randn_like(soft.bits))
    soft.scale.mul_(1.1)
    expected = [
        soft_weight(weight[i].tolist(), soft.scale[i].item(), int(zero[i]), soft.bits[i].tolist(), 7, float(start[i]))
        for i in range(6)
    ]
    assert torch.allclose(soft(weight), torch.tensor(expected), atol=1e-5)


@pytest.mark.parametrize("joint", [True, False])
def test_hardened_bits_are_what_nearest_rounding_returns(joint: bool) -> None:
    layer = linear()[0]
    soft = SoftWeight(layer, joint)
    with torch.no_grad():
        soft.bits.add_(4 * torch.randn_like(soft.bits))
        soft.scale.mul_(0.93)
    codes = (soft.base + (soft.bits >= 0)).clamp(0, 7)
    quantizer = soft.harden()
    assert torch.equal(quantizer.codes(layer.weight)[0].float(), codes)
    assert torch.allclose(quantizer(layer.weight), layer.weight, atol=1e-6)


def test_undecided_bits_count_and_decided_ones_do_not() -> None:
    soft = SoftWeight(linear()[0], True)
    with torch.no_grad():
        soft.bits.fill_(0.0)
    assert soft.undecided(2.0) == soft.bits.numel()
    with torch.no_grad():
        soft.bits.fill_(9.0)
    assert soft.undecided(2.0) == 0


@pytest.mark.parametrize("grid", [Grid(4, symmetric=False, per="tensor"), Grid(4, per="tensor")])
@pytest.mark.parametrize("signed", [True, False])
def test_a_learned_step_rounds_to_the_nearest_and_becomes_a_static_range(grid: Grid, signed: bool) -> None:
    x = torch.randn(5, 40) if signed else torch.rand(5, 40)
    step = LearnedStep(x, grid)
    quantizer = Quantizer(grid, step)
    scale = step.scale.item()
    assert grid.symmetric or (step.zero > 0) == signed
    reach = [code - step.zero for code in range(grid.low, grid.high + 1)]
    expected = [[nearest(v / scale, reach) * scale for v in row] for row in x.tolist()]
    assert torch.allclose(quantizer(x), torch.tensor(expected), atol=1e-5)
    ranges = Static(grid)
    ranges.hold(*step.bounds(grid))
    assert torch.allclose(Quantizer(grid, ranges)(x), quantizer(x), atol=1e-5)
    quantizer(x).sum().backward()
    assert step.scale.grad is not None and step.scale.grad.abs() > 0


def test_a_learned_step_spends_no_codes_below_what_it_saw() -> None:
    seen = nn.functional.gelu(torch.randn(2000, generator=torch.Generator().manual_seed(0)))
    grid, middle = Grid(4, symmetric=False, per="tensor"), Grid(4, per="tensor")
    ours, theirs = (Quantizer(g, LearnedStep(seen, g))(seen) for g in (grid, middle))
    assert LearnedStep(seen, grid).zero in (0, 1)
    assert (ours - seen).square().mean() < 0.4 * (theirs - seen).square().mean()


def test_drop_leaves_half_of_the_entries_in_floats() -> None:
    before = Quantizer(Grid(2, per="tensor"), MinMax())
    x = torch.randn(4000)
    soft = SoftActivation(before, 0.5, torch.Generator().manual_seed(0))
    kept = (soft(x) == x).float().mean()
    assert 0.45 < kept < 0.55
    assert torch.equal(SoftActivation(before, 0.0, torch.Generator())(x), before(x))
    assert soft.harden() is before


def test_units_are_collected_with_their_whole_calls() -> None:
    class Scaled(nn.Linear):
        def forward(self, input: Tensor, by: Tensor, *, plus: tuple[Tensor, float]) -> tuple[Tensor, int]:  # type: ignore[override]
            return super().forward(input) * by + plus[0] * plus[1], 7

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 3), Scaled(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x), x[:, :1], plus=(torch.ones(3), 2.0))[0]

    teacher = Net()
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        student.one.weight.add_(1.0)
    chunks = [{"x": torch.randn(n, 3)} for n in (4, 2)]
    chains = [Chain(model, ["one", "two"], chunks, last=True) for model in (student, teacher)]
    assert [chain.forms is None for chain in chains] == [False, False]
    calls = beside(chains[0], twin_of(chains[1], 1), 1, 0, torch.device("cpu"))
    x = torch.cat([chunk["x"] for chunk in chunks])
    assert torch.equal(calls.y, teacher(x)) and torch.equal(calls.x, teacher.one(x))
    rows = torch.tensor([5, 0])
    assert torch.equal(calls.run(student.two, rows, calls.seen[rows]), student(x)[rows])


def test_a_published_rate_is_paced_by_the_steps() -> None:
    rates = [scaled_rate(1e-3, steps) for steps in (0, 40, 2_000, 4_000, 20_000, 40_000)]
    assert rates == pytest.approx([3e-2, 3e-2, 1e-2, 5e-3, 1e-3, 5e-4]) and scaled_rate(1e-3, 20_000) == 1e-3


def test_a_student_is_better_than_nearest_and_ordinary() -> None:
    teacher = classifier(cnn())
    nearby, student = quantize_model(teacher, WEIGHTS), quantize_model(teacher, WEIGHTS)
    parts, before = blocks(teacher), [n for n, _ in student.named_modules()]
    reconstruct(student, teacher, batches(), parts, steps=60, batch_size=12, lr_bits=3e-2, round_weight=0.01)
    for name, _ in parts[1:-1]:
        assert error(student, teacher, name) < 0.8 * error(nearby, teacher, name)
    assert [n for n, _ in student.named_modules()] == before
    assert all(type(layer.weight_quantizer) is Quantizer for _, layer in quant_layers(student))
    assert all(torch.allclose(q.dequantized(), q.weight.flatten(1), atol=1e-6) for _, q in quant_layers(student))


def test_the_packed_student_answers_alike(tmp_path: Path) -> None:
    teacher = resnet()
    student = quantize_model(teacher, CONFIG)
    loop = Loop(folder=tmp_path / "log", every=2)
    reconstruct(student, teacher, batches(size=32), blocks(student), steps=3, batch_size=8, loop=loop)
    student.save_pretrained(tmp_path)
    with torch.no_grad():
        answers = [run_model(model, batches(8, 32)[0]).logits for model in (student, load(tmp_path))]
    assert torch.equal(*answers)
    assert (tmp_path / "log" / "reconstruct.jsonl").read_text().count('"error"') >= len(blocks(teacher))


def test_transformer_blocks_are_units_too() -> None:
    teacher = vit()
    student, again = quantize_model(teacher, CONFIG), quantize_model(teacher, CONFIG)
    for model in (student, again):
        reconstruct(model, teacher, batches(), blocks(teacher), steps=2, batch_size=8, joint=False, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), again.parameters(), strict=True))
    assert all(isinstance(q.input_quantizer.ranges, Static) for _, q in quant_layers(student) if q.input_quantizer)
    with torch.no_grad():
        assert run_model(student, batches()[0]).logits.isfinite().all()


def test_fixed_quantizers_stay_as_they_are() -> None:
    teacher = vit()
    student = calibrate(quantize_model(teacher, CONFIG), batches())
    first = next(layer for _, layer in quant_layers(student) if layer.input_quantizer)
    kept = first.input_quantizer
    assert kept is not None and isinstance(kept.ranges, Static)
    kept.ranges.hold(torch.tensor([[-7.0]]), torch.tensor([[8.0]]))
    reconstruct(student, teacher, batches(), blocks(teacher), steps=2, batch_size=8, fixed=[kept])
    assert first.input_quantizer is kept and (float(kept.ranges.scale), float(kept.ranges.zero)) == (1, 7)
    rest = [q.ranges for _, layer in quant_layers(student) if (q := layer.input_quantizer) and q is not kept]
    assert all(isinstance(ranges, Static) and float(ranges.scale) != 1 for ranges in rest)


def test_what_cannot_be_is_said() -> None:
    teacher = classifier(cnn())
    student = quantize_model(teacher, WEIGHTS)
    one = blocks(teacher)[:1]
    with pytest.raises(ValueError, match="no module 'nowhere'"):
        reconstruct(student, teacher, batches(), [("nowhere", nn.Identity())], steps=1)
    with pytest.raises(ValueError, match="blocks has 'layer1'; give pairs"):
        reconstruct(student, teacher, batches(), ["layer1"], steps=1)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="not float32"):
        reconstruct(copy.deepcopy(student).bfloat16(), teacher, batches(), one, steps=1)
    with pytest.raises(ValueError, match="there is no batch; give at least 1"):
        reconstruct(student, teacher, [], one, steps=1)
    with pytest.raises(ValueError, match="hold no quantizer"):
        reconstruct(student, teacher, batches(), [("module.pool", nn.Identity())], steps=1)
    with pytest.raises(ValueError, match="not finite"):
        reconstruct(student, teacher, [{"pixel_values": torch.full((4, 3, 16, 16), torch.nan)}], one, steps=1)
    assert all(type(layer.weight_quantizer) is Quantizer for _, layer in quant_layers(student))
