"""SAM's promises: nothing moves, nothing drifts, nothing stays behind, and bfloat16 does not swallow the step."""

import copy
import datetime
import itertools
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from reference_optim import perturbation
from toys_optim import W2, adamw, closure_of, layers, make_batch, make_student, params, same, watch
from zsaq.quant.config import Grid, QuantConfig
from zsaq.quant.model import quantize_model
from zsaq.train.sam import SAM


class Breaks(RuntimeError):
    pass


@pytest.mark.parametrize("at", [1, 2])
def test_all_is_restored_when_the_closure_raises(at: int) -> None:
    student = make_student()
    before = params(student)
    optimizer = SAM(adamw(student), student)
    calls = []

    def see() -> None:
        calls.append(1)
        if len(calls) == at:
            raise Breaks

    with pytest.raises(Breaks):
        optimizer.step(closure_of(student, make_batch(), see=see))
    assert same(params(student), before) and not optimizer.state
    assert all(layer.offset is None for layer in layers(student))


@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nothing_happens_where_a_number_is_not_finite(at: int, value: float) -> None:
    student = make_student()
    before = params(student)
    optimizer = SAM(adamw(student), student)
    calls, closure = [], closure_of(student, make_batch())

    def spoilt() -> Tensor:
        loss = closure()
        calls.append(1)
        if at == 3:  # a finite loss with a gradient that is not
            for layer in layers(student):
                assert layer.offset is not None and layer.offset.grad is not None
                layer.offset.grad[0, 0] = value
        return loss * value if len(calls) == at else loss

    with pytest.raises(ValueError, match=r"(nan|inf).*no step was taken. Lower the learning rate"):
        optimizer.step(spoilt)
    assert len(calls) == (2 if at == 2 else 1) and same(params(student), before) and not optimizer.state
    assert all(layer.offset is None for layer in layers(student))
    optimizer.step(closure)
    assert not same(params(student), before)


def test_batch_statistics_are_those_of_the_first_pass() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 4))
    student = quantize_model(model, W2).train()
    plain, batch = copy.deepcopy(student), make_batch()
    SAM(adamw(student), student, rho=5.0).step(closure_of(student, batch))
    plain(batch[0])
    assert same(dict(student.named_buffers()), dict(plain.named_buffers()))
    optimizer, before = SAM(adamw(student), student), {n: b.clone() for n, b in student.named_buffers()}
    with pytest.raises(ValueError, match="no step"):
        optimizer.step(closure_of(student, (batch[0] * torch.nan, batch[1])))
    assert same(dict(student.named_buffers()), before)


class Eyes(nn.Module):
    """A quantized and a float layer that see unit vectors: their outputs are the weights that they use."""

    def __init__(self) -> None:
        super().__init__()
        self.quantized, self.floating = nn.Linear(32, 32, bias=False), nn.Linear(32, 32, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.quantized(x).float().T, self.floating(x).float().T])


def arrival(realised: Tensor, eps: Tensor) -> tuple[float, float]:
    cosine = torch.nn.functional.cosine_similarity(realised.flatten(), eps.flatten(), dim=0)
    return float(cosine), float(realised.norm() / eps.norm())


def test_the_perturbation_survives_bfloat16_autocast() -> None:
    student = quantize_model(Eyes(), QuantConfig(weight=Grid(2, levels="half"), rules=(("floating", None),)))
    eye, target = torch.eye(32), torch.randn(64, 32)
    with torch.no_grad():
        stand = student(eye)  # the weights, exactly: rows 0..31 quantized, 32..63 float
    twin = Eyes().requires_grad_(True)
    with torch.no_grad():
        twin.quantized.weight.copy_(stand[:32])
        twin.floating.weight.copy_(stand[32:])
    mse_loss(twin(eye), target).backward()
    grads = {name: p.grad for name, p in twin.named_parameters() if p.grad is not None}
    expected = perturbation(grads, 0.002)
    eps = torch.cat([expected["quantized.weight"], expected["floating.weight"]])

    outputs: list[Tensor] = []

    def closure() -> Tensor:
        student.zero_grad()
        out = student(eye)
        outputs.append(out.detach())
        loss = mse_loss(out, target)
        loss.backward()
        return loss.detach()

    optimizer = SAM(torch.optim.SGD(student.parameters(), lr=0.0), student, rho=0.002)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            optimizer.step(closure)
    for worst in outputs[1::2]:
        for part in (slice(0, 32), slice(32, 64)):
            cosine, length = arrival(worst[part] - stand[part], eps[part])
            assert cosine > 0.9 and abs(length - 1) < 0.2
            # What a second pass in bfloat16 would have made of it.
            cosine, length = arrival(worst[part].bfloat16().float() - stand[part].bfloat16().float(), eps[part])
            assert cosine < 0.9 or abs(length - 1) > 0.2
    assert optimizer.diagnostics()["cosine"] > 0.99
    assert torch.equal(outputs[0], stand), "the first step is probed: both looks in full precision"
    assert not torch.equal(outputs[2][32:], stand[32:]), "others look first as autocast says"


def test_quantized_layers_take_bfloat16_inputs_on_every_step() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4))
    student = quantize_model(model, QuantConfig(weight=Grid(2, levels="half"), rules=(("0", None),)))
    before = params(student)
    optimizer = SAM(adamw(student), student)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            optimizer.step(closure_of(student, make_batch()))
    assert not same(params(student), before)


@pytest.mark.parametrize("rho", [0.5, 0.0])
def test_no_stale_casts_after_a_step_or_in_the_second_pass(rho: float) -> None:
    student = quantize_model(Eyes(), QuantConfig(weight=Grid(2, levels="half"), rules=(("floating", None),)))
    eye, closure = torch.eye(32), closure_of(student, (torch.eye(32), torch.randn(64, 32)))
    floats: list[Tensor] = []

    def entering() -> Tensor:
        """What the contract forbids, as the hardest case: cached casts would be found again."""
        with torch.autocast("cpu", torch.bfloat16):
            floats.append(student(eye)[32:].detach())
            return closure()

    optimizer = SAM(torch.optim.SGD(student.parameters(), lr=50.0), student, rho)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):  # the second does not probe
            optimizer.step(entering)
            assert torch.equal(student(eye)[32:], student.get_parameter("floating.weight").bfloat16().float())
    assert len(floats) == (4 if rho else 2)
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(floats))


def step_together(rank: int, store: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60)
    )
    student = make_student()
    start = params(student)
    parallel = nn.parallel.DistributedDataParallel(student)
    optimizer = SAM(torch.optim.SGD(student.parameters(), lr=0.1), student, rho=0.5)
    optimizer.no_sync = parallel.no_sync
    x, y = make_batch(6)
    looks, see = watch(student)
    mine = (x[rank::2], y[rank::2])
    optimizer.step(closure_of(parallel, mine, see=see))
    first = params(student)
    for _ in range(2):
        optimizer.step(closure_of(parallel, mine, see=see))
    ends = params(student)
    try:
        optimizer.step(closure_of(parallel, (mine[0], mine[1] * torch.nan) if rank else mine))
    except ValueError as error:
        refused = str(error)
    else:
        refused = ""
    assert "no step was taken" in refused and same(params(student), ends)
    both: list[dict | None] = [None, None]
    dist.all_gather_object(both, {"end": ends, "eps": {n: looks[1][n] - looks[0][n] for n in ends}})
    one, other = both
    assert one is not None and other is not None and same(one["end"], other["end"])
    assert not same(one["eps"], other["eps"]), "each perturbs on its own gradient"
    if rank == 0:  # the plain twin: a step along the mean of the halves' gradients, each at its own worst point
        steps = []
        for half in range(2):
            alone = make_student()
            SAM(torch.optim.SGD(alone.parameters(), lr=0.1), alone, rho=0.5).step(
                closure_of(alone, (x[half::2], y[half::2]))
            )
            steps.append({name: value - start[name] for name, value in params(alone).items()})
        expected = {name: start[name] + (steps[0][name] + steps[1][name]) / 2 for name in start}
        torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-6)
    dist.destroy_process_group()
    (Path(folder) / f"{rank}").write_text("done")


def test_two_processes_stay_identical(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(
        step_together, (str(tmp_path / "store"), str(tmp_path)), nprocs=2, start_method="fork"
    )
    assert (tmp_path / "0").read_text() == (tmp_path / "1").read_text() == "done"
