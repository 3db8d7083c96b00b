import copy
from typing import Any

import pytest
import torch
from accelerate import Accelerator, PartialState, debug_launcher
from accelerate.state import AcceleratorState, GradientState
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import reference_gptq
from toys import batches, bert, gpt2, llama, opt
from vision_toys import images, vit
from zsaq import Grid, Loop, QuantConfig, calibrate, gptq, quantize_model
from zsaq.language.models import blocks
from zsaq.quant.codes import groups
from zsaq.quant.layers import quant_layers
from zsaq.quant.ranges import search
from zsaq.train.compensation import COLUMNS, Factor, gptq_columns
from zsaq.train.pair import run_model

CONFIG = QuantConfig.parse("w2a8")


def of_every_entry(weight: Tensor, grid: Grid, importance: Tensor | None = None) -> tuple[Tensor, Tensor]:
    view = groups(weight, grid)
    counts = None if importance is None else groups((importance / importance.mean()).to(weight).expand_as(weight), grid)
    scale, zero = search(view, grid, importance=counts)
    zero = torch.as_tensor(zero, dtype=scale.dtype)
    return scale.expand_as(view).reshape(weight.shape), zero.expand_as(view).reshape(weight.shape)


@given(
    st.integers(2, 5), st.booleans(), st.sampled_from(["channel", "tensor", 4]), st.integers(0, 9), st.integers(1, 30)
)
def test_every_column_takes_what_the_plain_problem_gives_it(
    bits: int, symmetric: bool, per: Any, seed: int, rows: int
) -> None:
    rng = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, 12, generator=rng)
    x = torch.randn(rows, 12, generator=rng, dtype=torch.float64) @ torch.randn(
        12, 12, generator=rng, dtype=torch.float64
    )
    grid = Grid(bits, symmetric=symmetric, per=per)
    scale, zero = of_every_entry(weight.double(), grid)
    check(weight.double(), x.T @ x, scale, zero, grid)


def check(weight: Tensor, hessian: Tensor, scale: Tensor, zero: Tensor, grid: Grid) -> None:
    rounded, _, miss = gptq_columns(weight, Factor.of(hessian.clone(), 0.01, torch.float64), scale, zero, grid)
    expected = reference_gptq.gptq_columns(weight, hessian, scale, zero, grid, 0.01)
    assert (rounded - expected).abs().max() < 1e-9
    away = weight - rounded
    assert miss == pytest.approx(float(((away @ hessian) * away).sum()), rel=1e-6, abs=1e-9)


def test_lazy_blocks_change_nothing() -> None:
    weight, x = torch.randn(3, 2 * COLUMNS + 7), torch.randn(400, 2 * COLUMNS + 7, dtype=torch.float64)
    x = x * torch.rand(x.shape[1], dtype=torch.float64)
    grid = Grid(3)
    scale, zero = of_every_entry(weight.double(), grid)
    check(weight.double(), x.T @ x, scale, zero, grid)


def test_the_layers_answer_is_nearer_than_after_rounding_to_nearest() -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(16, 64), torch.randn(300, 8) @ torch.randn(8, 64) + 0.1 * torch.randn(300, 64)
    for bits in (2, 3, 4):
        grid = Grid(bits)
        scale, zero = of_every_entry(weight, grid)
        nearest = (torch.div(weight, scale) + zero).round().clamp(grid.low, grid.high).sub(zero) * scale
        ours = gptq_columns(weight, Factor.of((x.T @ x).double(), 0.01), scale, zero, grid)[0]
        assert (x @ (ours - weight).T).square().sum() < 0.5 * (x @ (nearest - weight).T).square().sum()


@pytest.mark.parametrize("make", [bert, gpt2, opt, llama])
def test_a_student_comes_nearer_to_its_teacher(make) -> None:
    torch.manual_seed(0)
    teacher, texts = make(), batches(6, pad=True)
    student = quantize_model(teacher, QuantConfig.parse("w3a8"))
    before = miss(student, teacher, texts)
    was = latent(student)
    assert gptq(student, texts, blocks(student)) is student
    assert miss(student, teacher, texts) < 0.8 * before
    for name, layer in quant_layers(student):
        inside = any(name.startswith(block + ".") for block, _ in blocks(student))
        assert torch.equal(layer.weight, was[name]) != inside
        if inside:  # the latent weight stays in its level's cell
            scale = layer.weight_quantizer.ranges(layer.rows(), layer.weight_quantizer.grid)[0]
            assert ((layer.dequantized() - layer.rows()).abs() <= 0.4901 * scale.abs()).all()


def miss(student: nn.Module, teacher: nn.Module, texts: list[dict[str, Tensor]]) -> float:
    with torch.no_grad():
        return sum(float((run_model(student, b).logits - run_model(teacher, b).logits).square().mean()) for b in texts)


def test_a_layer_hears_what_those_before_it_leave() -> None:
    """The second layer of a block is rounded on the inputs of the student whose first layer is rounded already."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4)))
    student = quantize_model(model, CONFIG)
    batch = {"input": torch.randn(50, 8)}
    first, second = (copy.deepcopy(layer) for _, layer in quant_layers(student))
    gptq(student, [batch], [("0", student)])
    x = first.inputs(batch["input"])
    for layer, now in zip((first, second), (layer for _, layer in quant_layers(student)), strict=True):
        weight, grid, moment = layer.weight.detach(), layer.weight_quantizer.grid, (x.T @ x).detach().double()
        factor = Factor.of(moment, 0.01)
        scale, zero = of_every_entry(weight, grid, factor.cost)
        expected = gptq_columns(weight, factor, scale, zero, grid)[0]
        assert torch.allclose(now.dequantized(), expected)
        x = now.inputs(torch.tanh(now(batch["input"]))) if layer is first else x


def test_an_error_costs_what_the_columns_behind_leave_of_it() -> None:
    """1 / U_ii^2 is the least squared answer with an error of 1 in column i, if those behind it may move freely."""
    torch.manual_seed(0)
    x = torch.randn(40, 7, dtype=torch.float64) @ torch.randn(7, 7, dtype=torch.float64)
    factor = Factor.of(x.T @ x, 1e-12, torch.float64)
    for turn, i in enumerate(factor.order.tolist()):
        behind = x[:, factor.order[turn + 1 :]]
        rest = x[:, i] - behind @ (torch.linalg.pinv(behind) @ x[:, i])
        assert torch.isclose(factor.cost[i], rest.square().sum(), rtol=1e-3)


@pytest.mark.parametrize("alive", [0, 5])
def test_inputs_that_are_never_there_leave_the_weights_finite(alive: int) -> None:
    torch.manual_seed(0)
    student = quantize_model(nn.Sequential(nn.Sequential(nn.Linear(8, 4))), QuantConfig(Grid(3, per=4)))
    x = torch.randn(20, 8) * (torch.arange(8) < alive)
    gptq(student, [{"input": x}], [("0", student)])
    assert all(tensor.isfinite().all() for tensor in student.state_dict().values())


def test_ranges_for_the_inputs_leave_a_smaller_error() -> None:
    torch.manual_seed(0)
    x = torch.randn(300, 64) * torch.logspace(-1, 1, 64)[torch.randperm(64)]
    weight, factor = torch.randn(32, 64), Factor.of((x.T @ x).double(), 0.01)
    for grid in (Grid(2, levels="half", per=16), Grid(3, per=16), Grid(3, symmetric=False, per=16)):
        blind, seeing = (
            gptq_columns(weight, factor, *of_every_entry(weight, grid, cost), grid)[2] for cost in (None, factor.cost)
        )
        assert seeing < 0.9 * blind


@pytest.mark.parametrize("make", [bert, opt])  # OPT puts its rows behind each other before fc1
def test_padding_does_not_count(make) -> None:
    torch.manual_seed(0)
    teacher, texts = make(), batches(3, pad=True)
    other = [{**b, "input_ids": torch.where(b["attention_mask"] > 0, b["input_ids"], 7)} for b in texts]
    assert any(not torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(texts, other, strict=True))
    students = [gptq(s, t, blocks(s)) for t in (texts, other) for s in [quantize_model(teacher, CONFIG)]]
    for (_, a), (_, b) in zip(*map(quant_layers, students), strict=True):
        assert torch.equal(a.weight, b.weight)


def test_a_vit_of_static_ranges() -> None:
    teacher, pictures = vit(), [{"pixel_values": images(8, 16)}]
    rules = (("*patch*", None),)  # a convolution, which GPTQ leaves rounded, and whose error hides all others
    student = quantize_model(teacher, QuantConfig(Grid(3), Grid(8, per="tensor"), rules=rules))
    with pytest.raises(ValueError, match=r"run zsaq\.calibrate"):
        gptq(student, pictures, blocks(student))
    before = miss(calibrate(student, pictures), teacher, pictures)
    assert miss(gptq(student, pictures, blocks(student)), teacher, pictures) < 0.5 * before


def test_bad_input_is_told() -> None:
    student, texts = quantize_model(bert(), CONFIG), batches(1)
    for damping in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="damping"):
            gptq(student, texts, blocks(student), damping=damping)
    with pytest.raises(ValueError, match="0 batches"):
        gptq(student, [], blocks(student))
    with pytest.raises(ValueError, match="holds no quantized layer"):
        gptq(student, texts, [("bert.embeddings.LayerNorm", student)])
    with pytest.raises(ValueError, match=r"blocks has 'l'; give pairs, as \[\('layer1', student\.get_submodule\("):
        gptq(student, texts, ["l"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="no module 'nothing'"):
        gptq(student, texts, [("nothing", student)])
    with pytest.raises(ValueError, match="ranges='searched'"):
        minmax = quantize_model(bert(), QuantConfig(weight=Grid(4), ranges="minmax"))
        gptq(minmax, texts, blocks(minmax))
    with pytest.raises(ValueError, match="bfloat16"):
        half = quantize_model(bert().bfloat16(), CONFIG)
        gptq(half, texts, blocks(half))


def test_inputs_that_are_not_finite_are_told() -> None:
    student, texts = quantize_model(bert(), CONFIG), batches(1)
    with torch.no_grad():
        student.bert.embeddings.LayerNorm.weight.fill_(float("inf"))
    with pytest.raises(ValueError, match="not finite"):
        gptq(student, texts, blocks(student))


def a_batch_each(folder: str) -> None:
    """One of two processes, with a batch of its own."""
    loop = Loop(Accelerator(cpu=True))
    torch.manual_seed(0)
    student, texts = quantize_model(bert(), CONFIG), batches(2)
    gptq(student, [texts[loop.accelerator.process_index]], blocks(student), loop=loop)
    save_file(latent(student), f"{folder}/{loop.accelerator.process_index}.safetensors")


def latent(student: nn.Module) -> dict[str, Tensor]:
    return {name: layer.weight.detach().clone() for name, layer in quant_layers(student)}


def test_two_processes_with_a_batch_each_equal_one_with_both(tmp_path) -> None:
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    debug_launcher(a_batch_each, (str(tmp_path),), num_processes=2)
    torch.manual_seed(0)
    student = quantize_model(bert(), CONFIG)
    gptq(student, batches(2), blocks(student))
    ranks = [load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1)]
    for name, weight in latent(student).items():
        assert torch.equal(ranks[0][name], ranks[1][name])
        assert torch.allclose(ranks[0][name], weight, atol=1e-5)


@pytest.mark.parametrize("small", [0.0, 1e-30])
@pytest.mark.parametrize("text", ["w4a16g8", "w3a8"])
def test_a_layer_whose_inputs_are_all_zero_is_rounded_to_nearest_and_told(
    small: float, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    teacher = llama()
    with torch.no_grad():
        teacher.model.layers[0].mlp.up_proj.weight.mul_(small)
    student = quantize_model(teacher, QuantConfig.parse(text))
    gptq(student, batches(2), blocks(student))
    layer = student.model.layers[0].mlp.down_proj
    meant = teacher.model.layers[0].mlp.down_proj.weight
    view = groups(meant, layer.weight_quantizer.grid)
    grid = layer.weight_quantizer.grid
    scale, zero = search(view, grid, importance=torch.ones_like(view))
    nearest = ((view / scale + zero).round().clamp(grid.low, grid.high) - zero) * scale
    assert torch.equal(layer.dequantized(), nearest.reshape(meant.shape))
    assert "model.layers.0: the inputs of mlp.down_proj are all zero" in capsys.readouterr().err
