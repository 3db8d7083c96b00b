"""SAM against its formulas, a plain twin and micro-batches."""

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from reference_optim import sam_gradients
from toys_optim import MLP, W2, adamw, closure_of, layers, make_batch, make_student, params, same, watch
from zsaq.quant.config import Grid, QuantConfig
from zsaq.quant.layers import quant_layers
from zsaq.quant.model import quantize_model
from zsaq.quant.ranges import MSEOptimal
from zsaq.train.optim import Clip
from zsaq.train.sam import SAM


def twin_of(student: nn.Module) -> tuple[nn.Module, dict[str, tuple[Tensor, Grid]]]:
    """A float twin, and scale and grid of each quantized weight."""
    grids = {}
    for name, layer in quant_layers(student):
        ranges = layer.weight_quantizer.ranges
        assert isinstance(ranges, MSEOptimal)
        grids[f"{name}.weight"] = (ranges.scale.detach(), layer.weight_quantizer.grid)
    return MLP(), grids


@pytest.mark.parametrize("text", ["w2a16", "w4a16"])
def test_agrees_with_plain_loops(text: str) -> None:
    student, batch, rho = make_student(QuantConfig.parse(text)), make_batch(), 0.3
    plain = copy.deepcopy(student)
    twin, grids = twin_of(student)
    expected = adamw(plain)
    optimizer = SAM(adamw(student), student, rho)
    looks, see = watch(student)
    for step in range(3):
        grads, eps = sam_gradients(twin, params(plain), grids, batch, rho)
        for name, p in plain.named_parameters():
            p.grad = grads[name]
        expected.step()
        optimizer.step(closure_of(student, batch, see=see))
        for name in eps:
            torch.testing.assert_close(
                looks[2 * step + 1][name] - looks[2 * step][name], eps[name], rtol=2e-4, atol=1e-6
            )
        torch.testing.assert_close(params(student), params(plain), rtol=1e-4, atol=1e-5)


def test_moves_exactly_rho_and_latent_weights_never_move() -> None:
    student, rho = make_student(), 0.05
    before = params(student)
    looks, see = watch(student)
    latents: list[bool] = []

    def both() -> None:
        see()
        latents.append(all(torch.equal(before[f"{n}.weight"], layer.weight) for n, layer in quant_layers(student)))

    optimizer = SAM(torch.optim.SGD(student.parameters(), lr=0.0), student, rho)
    optimizer.step(closure_of(student, make_batch(), see=both))
    moved = torch.cat([(looks[1][name].double() - looks[0][name].double()).flatten() for name in looks[0]])
    assert abs(float(moved.norm()) - rho) < 1e-5 * rho + 1e-6
    assert latents == [True, True] and same(params(student), before)
    assert not torch.equal(looks[0]["norm.weight"], looks[1]["norm.weight"])
    assert [layer.offset for layer in layers(student)] == [None, None]


@pytest.mark.parametrize("bf16", [False, True])
def test_rho_0_is_the_plain_step_bit_for_bit(bf16: bool) -> None:
    class Dropping(MLP):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(super().forward(x), 0.5)

    torch.manual_seed(1)
    student = quantize_model(Dropping(), W2)
    plain = copy.deepcopy(student)
    base, optimizer = adamw(plain), SAM(adamw(student), student, rho=0.0)
    for model, one in ((plain, base), (student, optimizer)):
        torch.manual_seed(5)
        for _ in range(3):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                one.step(closure_of(model, make_batch()))
    assert same(params(student), params(plain))
    assert optimizer.diagnostics() == {}


def test_the_scale_of_the_loss_does_not_matter() -> None:
    seen = []
    for scale in (1.0, 1024.0):
        student = make_student()
        looks, see = watch(student)
        SAM(adamw(student), student).step(closure_of(student, make_batch(), scale=scale, see=see))
        seen.append(looks[1])
    torch.testing.assert_close(seen[0], seen[1], rtol=0, atol=1e-8)


def test_micro_batches_equal_the_full_batch() -> None:
    x, y = make_batch(6)
    results = []
    for batches in ([(x, y)], [(x[:3], y[:3]), (x[3:], y[3:])]):
        student = make_student()
        looks, see = watch(student)
        optimizer = SAM(torch.optim.SGD(student.parameters(), lr=0.1), student, rho=0.5)
        loss = optimizer.step(closure_of(student, *batches, see=see))
        results.append((loss, looks[-1], params(student)))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)


def test_the_phase_of_the_probe_survives_a_checkpoint() -> None:
    student = make_student()
    closure = closure_of(student, make_batch())
    optimizer, probed = SAM(adamw(student), student), []
    for step in range(12):
        if step == 5:
            state = optimizer.state_dict()
            optimizer = SAM(adamw(student), student)
            optimizer.load_state_dict(state)
        optimizer.measured.clear()
        optimizer.step(closure)
        if "cosine" in optimizer.diagnostics():
            probed.append(step)
    assert probed == [0, 10]


def test_the_step_arrives_at_the_dequantized_weights() -> None:
    torch.manual_seed(3)
    wide = nn.Sequential(nn.Linear(64, 256), nn.LayerNorm(256), Conv1D(64, 256))
    student = quantize_model(wide, W2)
    before = params(student)
    optimizer = SAM(torch.optim.SGD(student.parameters(), lr=0.0), student, 0.05)
    optimizer.step(closure_of(student, (torch.randn(16, 64), torch.randn(16, 64))))
    assert same(params(student), before)
    assert optimizer.diagnostics()["cosine"] > 0.999


def test_learned_scales_frozen_layers_and_strangers_are_not_perturbed() -> None:
    student = make_student(QuantConfig.parse("w2a16"))
    learned = quantize_model(MLP(), QuantConfig(weight=Grid(2, levels="half"), ranges="learned"))
    looks: list[dict[str, Tensor]] = []
    optimizer = SAM(adamw(learned), learned, rho=0.5)
    optimizer.step(closure_of(learned, make_batch(), see=lambda: looks.append(params(learned))))
    scales = [name for name in looks[0] if name.endswith("scale")]
    assert len(scales) == 2 and all(torch.equal(looks[0][name], looks[1][name]) for name in scales)
    student.get_submodule("first").requires_grad_(False)
    looks, see = watch(student)
    optimizer = SAM(torch.optim.SGD(student.get_submodule("last").parameters(), lr=0.1), student, rho=0.5)
    optimizer.step(closure_of(student, make_batch(), see=see))
    moved = {name for name in looks[0] if not torch.equal(looks[0][name], looks[1][name])}
    assert moved == {"last.weight", "last.bias"}


def test_ends_of_a_tie_share_one_offset() -> None:
    student = make_student()
    first = quantize_model(nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)), W2)
    a, b = layers(first)
    b.weight, b.weight_quantizer = a.weight, a.weight_quantizer
    offsets: list[tuple[Tensor | None, Tensor | None]] = []
    optimizer = SAM(adamw(first), first, rho=0.05)
    closure = closure_of(
        first, (torch.randn(5, 8), torch.randn(5, 8)), see=lambda: offsets.append((a.offset, b.offset))
    )
    optimizer.step(closure)
    one, other = offsets[1]
    assert one is other and one is not None and float(one.norm()) == pytest.approx(0.05, rel=1e-5)
    assert a.offset is None and b.offset is None and student is not first


def test_diagnostics_and_delegation() -> None:
    student, batch = make_student(), make_batch()
    base = adamw(student)
    clip = Clip(base, 1.0)
    optimizer = SAM(clip, student, rho=0.5)
    assert optimizer.innermost is base and optimizer.param_groups is base.param_groups and optimizer.state is base.state
    manager = torch.no_grad
    optimizer.no_sync = manager
    assert clip.no_sync is manager
    optimizer = SAM(clip, student, rho=0.5)
    looks, see = watch(student)
    losses: list[float] = []
    closure = closure_of(student, batch, see=see)

    def noted() -> Tensor:
        loss = closure()
        losses.append(float(loss))
        return loss

    loss = optimizer.step(noted)
    measured = optimizer.diagnostics()
    assert float(loss) == losses[0] < losses[1] and len(looks) == 2
    assert measured == {"norm": clip.norm, "gap": measured["gap"], "cosine": pytest.approx(1, abs=1e-3)}
    assert measured["gap"] == pytest.approx((losses[1] - losses[0]) / losses[0], rel=1e-4)
    optimizer.zero_grad()
    assert all(p.grad is None for p in student.parameters())


@pytest.mark.parametrize("rho", [-1.0, float("nan"), float("inf")])
def test_a_rho_that_cannot_be(rho: float) -> None:
    student = make_student()
    with pytest.raises(ValueError, match=f"rho is {rho}"):
        SAM(adamw(student), student, rho)


def test_other_mistakes() -> None:
    student = make_student()
    with pytest.raises(ValueError, match="give an optimizer instance"):
        SAM(torch.optim.AdamW, student)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_norm is 0"):
        Clip(adamw(student), 0)
    with pytest.raises(ValueError, match="give step a closure, and put Clip inside"):
        Clip(SAM(adamw(student), student), 1.0).step()
    with pytest.raises(ValueError, match="bfloat16"):
        SAM(adamw(student.bfloat16()), student)
    scales = quantize_model(MLP(), QuantConfig(weight=Grid(2, levels="half"), ranges="learned"))
    for name, parameter in scales.named_parameters():
        parameter.requires_grad_(name.endswith("scale"))
    with pytest.raises(ValueError, match="nothing to perturb"):
        SAM(adamw(scales), scales)
