import json
import math

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.models.bert.modeling_bert import BertLayer

from toys import batches, bert, mlp
from zsaq import (
    KL,
    SAM,
    Clip,
    Grid,
    HiddenStates,
    LayerWise,
    Loop,
    Objective,
    Pair,
    QuantConfig,
    calibrate,
    coverage,
    distill,
    parameter_groups,
    quantize_model,
    repeat,
)
from zsaq.language.attention import AttentionScores
from zsaq.quant.ranges import static_ranges
from zsaq.train.optim import NotFinite, Wrapper
from zsaq.train.trainer import processes

CONFIG = QuantConfig.parse("w2a8")
STATIC = QuantConfig(Grid(8), Grid(8, symmetric=False, per="tensor"))


def plain(student: nn.Module, lr: float = 1e-2) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameter_groups(student, lr), lr, weight_decay=0.0)


def sgd(student: nn.Module) -> torch.optim.SGD:
    """Adam would blow up the rounding of gradients that are almost zero; where runs are compared, steps are plain."""
    return torch.optim.SGD(student.parameters(), 0.05)


def constant(**options) -> Loop:
    return Loop(schedule="constant", warmup=0.0, **options)


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def test_distill_is_the_plain_loop(tmp_path) -> None:
    teacher, seen = bert(), batches(4)
    objective = KL() + 0.1 * HiddenStates(BertLayer)
    student = quantize_model(teacher, CONFIG)
    twin = quantize_model(teacher, CONFIG)
    distill(student, teacher, seen, objective, sgd(student), 4, constant(folder=tmp_path))
    optimizer, losses = sgd(twin), []
    for batch in seen:
        optimizer.zero_grad()
        p, q = (m(**batch, output_hidden_states=True) for m in (teacher, twin))
        loss = nn.functional.kl_div(
            q.logits.log_softmax(-1), p.logits.log_softmax(-1), log_target=True, reduction="batchmean"
        )
        for a, b in zip(p.hidden_states[1:], q.hidden_states[1:], strict=True):
            loss = loss + 0.1 * (a.detach() - b).square().sum() / a.detach().square().sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(weights(student), weights(twin), strict=True))
    told = [json.loads(line) for line in (tmp_path / "distill.jsonl").read_text().splitlines()]
    assert [line["step"] for line in told] == [1, 2, 3, 4]
    assert [line["loss"] for line in told] == pytest.approx(losses, rel=1e-4)
    assert {"KL", "HiddenStates", "lr", "seconds"} <= set(told[0])


def test_the_student_comes_closer_and_the_teacher_stays() -> None:
    teacher = bert()
    before, student = weights(teacher), quantize_model(teacher, CONFIG)
    held = batches(1, size=64, seed=9)[0]

    def gap() -> float:
        with torch.no_grad():
            return float((teacher(**held).logits - student(**held).logits).square().mean())

    start = gap()
    distill(
        student,
        teacher,
        batches(40, seed=1),
        KL() + HiddenStates(BertLayer),
        SAM(Clip(plain(student, 3e-3), 1.0), student),
        40,
    )
    assert gap() < 0.6 * start
    assert all(torch.equal(a, b) for a, b in zip(weights(teacher), before, strict=True))
    assert "2-bit half" in coverage(student)["bert.encoder.layer.0.output.dense"]


OBJECTIVES = {
    "kl": lambda teacher, student: KL() + HiddenStates(BertLayer),
    "layer-wise": lambda teacher, student: 1.0 * LayerWise(BertLayer),
    "scores": lambda teacher, student: KL() + AttentionScores(teacher, student),
}


@pytest.mark.parametrize("name", list(OBJECTIVES))
@pytest.mark.parametrize("sam", [False, True])
def test_accumulated_micro_batches_equal_the_whole(sam: bool, name: str) -> None:
    """The first half of each batch is padded to half of the length, so that micro-batches hold different numbers."""
    teacher, whole = bert(), batches(3, size=8, pad=True)
    parts = [{k: v[i : i + 4] for k, v in batch.items()} for batch in whole for i in (0, 4)]
    ends = []
    for given, accumulate in ((whole, 1), (parts, 2)):
        student = quantize_model(teacher, QuantConfig.parse("w2a16"))
        optimizer = SAM(sgd(student), student) if sam else sgd(student)
        objective = OBJECTIVES[name](teacher, student)
        ends.append(weights(distill(student, teacher, given, objective, optimizer, 3, constant(accumulate=accumulate))))
    assert all(torch.allclose(a, b, atol=2e-5) for a, b in zip(*ends, strict=True))


def test_a_loss_that_is_not_finite_keeps_the_last_good_state() -> None:
    teacher, student = mlp(), quantize_model(mlp(), CONFIG)
    good = [{"input": torch.randn(4, 16)} for _ in range(2)]
    twin = quantize_model(teacher, CONFIG)
    student.load_state_dict(twin.state_dict())
    distill(twin, teacher, good, KL(), plain(twin), 2, constant())
    bad = [*good, {"input": torch.full((4, 16), math.nan)}]
    with pytest.raises(ValueError, match="step 3: the loss is not finite"):
        distill(student, teacher, bad, KL(), SAM(plain(student), student, rho=0.0), 3, constant())
    assert all(torch.allclose(a, b) for a, b in zip(weights(student), weights(twin), strict=True))


@pytest.mark.parametrize("steps", [1, 2])
def test_a_gradient_that_is_not_finite_keeps_the_last_good_state(steps: int) -> None:
    """The root of 0 has the loss 0 and an infinite slope."""

    class Root(Objective):
        def __call__(self, pair: Pair) -> torch.Tensor:
            return (pair.student.logits * 0).sum().sqrt()

    teacher, student = mlp(), quantize_model(mlp(), CONFIG)
    before = weights(student)
    with pytest.raises(NotFinite, match=r"step 1: .* its gradient") as stop:
        distill(student, teacher, [{"input": torch.randn(4, 16)}] * 2, Root(), plain(student), steps, constant())
    assert stop.value.student is student
    assert all(torch.equal(a, b) for a, b in zip(weights(student), before, strict=True))


def test_what_cannot_train_is_named_before_a_step() -> None:
    teacher, student, given = mlp(), quantize_model(mlp(), CONFIG), [{"input": torch.randn(2, 16)}]
    with pytest.raises(ValueError, match="no parameter of the student"):
        distill(student, teacher, given, KL(), plain(mlp()), 1)
    with pytest.raises(ValueError, match="ratio is"):
        distill(student, teacher, given, KL(), plain(student), 1, ratio=(0, 1))


def test_a_tracker_that_is_not_installed_is_named() -> None:
    with pytest.raises(ValueError, match="no-such-tracker"):
        processes(["no-such-tracker"])


def test_batches_that_run_out_are_named() -> None:
    teacher, student = mlp(), quantize_model(mlp(), CONFIG)
    with pytest.raises(ValueError, match="ran out at step 2 of 3"):
        distill(student, teacher, [{"input": torch.randn(2, 16)}], KL(), plain(student), 3)
    with pytest.raises(ValueError, match="no batch"):
        next(repeat([]))


class Climber:
    def __init__(self) -> None:
        self.at: list[float] = []

    def ascend(self, divergence):
        x = torch.randn(4, 16, requires_grad=True)
        value, logits = divergence({"input": x})
        (gradient,) = torch.autograd.grad(value, x)
        assert gradient.abs().sum() > 0 and logits.shape == (4, 4)
        self.at.append(value.item())
        return {"ascended": value.item()}


@pytest.mark.parametrize(("ratio", "climbs"), [((2, 1), 2), ((3, 2), 2), ((1, 0), 0), ((5, 1), 1)])
def test_the_player_moves_after_every_few_steps(ratio: tuple[int, int], climbs: int, tmp_path) -> None:
    teacher, student, adversary = mlp(), quantize_model(mlp(), CONFIG), Climber()
    given = repeat([{"input": torch.randn(4, 16)}])
    distill(
        student, teacher, given, KL(), plain(student), 6, constant(folder=tmp_path), adversary=adversary, ratio=ratio
    )
    assert len(adversary.at) == climbs
    assert (tmp_path / "distill.jsonl").read_text().count("ascended") == (
        climbs if ratio[1] < 2 else climbs // ratio[1]
    )
    assert all(p.grad is None for p in student.parameters())


def test_calibrate_fills_static_ranges() -> None:
    teacher = mlp()
    student = quantize_model(teacher, QuantConfig(Grid(8), Grid(8, symmetric=False, per="tensor")))
    seen = [{"input": torch.randn(4, 16)} for _ in range(3)]
    with pytest.raises(ValueError, match="calibrate"):
        student(seen[0]["input"])
    with pytest.raises(ValueError, match="at least one batch"):
        calibrate(student, [])
    calibrate(student, seen)
    ranges = static_ranges(student)
    assert len(ranges) == 2 and all(each.observer.updates == 3 for each in ranges)
    assert torch.allclose(student(seen[0]["input"]), teacher(seen[0]["input"]), atol=0.1)


def test_the_scheduler_reaches_the_innermost_optimizer(tmp_path) -> None:
    teacher, student = mlp(), quantize_model(mlp(), CONFIG)
    optimizer = SAM(Clip(plain(student, 1.0e-3), 1.0), student)
    assert isinstance(optimizer, Wrapper)
    loop = Loop(schedule="linear", warmup=0.5, folder=tmp_path)
    distill(student, teacher, [{"input": torch.randn(4, 16)}] * 4, KL(), optimizer, 4, loop)
    told = [json.loads(line)["lr"] for line in (tmp_path / "distill.jsonl").read_text().splitlines()]
    assert told == pytest.approx([5e-4, 1e-3, 5e-4, 0.0])
    assert "gap" in (tmp_path / "distill.jsonl").read_text()


def test_fp16_is_refused() -> None:
    accelerator = Accelerator()
    accelerator.state._mixed_precision = "fp16"
    try:
        with pytest.raises(ValueError, match="bf16"):
            Loop(accelerator)
    finally:
        accelerator.state._mixed_precision = "no"


def running(student: nn.Module) -> dict[str, torch.Tensor]:
    return {f"{i}{key}": value for i, each in enumerate(static_ranges(student)) for key, value in each.named_buffers()}


def half_of_the_batch(folder: str) -> None:
    """One of two processes: its half of every batch; the first saves where it ends."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    teacher, rank = mlp(), Accelerator(cpu=True).process_index
    torch.manual_seed(2)
    texts, padded = bert(), batches(3, pad=True)
    student = quantize_model(texts, CONFIG)
    given = [{k: v[rank * 4 : rank * 4 + 4] for k, v in batch.items()} for batch in padded]
    distill(student, texts, given, KL() + HiddenStates(BertLayer), sgd(student), 3, constant())
    save_file({str(i): w for i, w in enumerate(weights(student))}, f"{folder}/text{rank}.safetensors")
    torch.manual_seed(3)
    ranges = calibrate(quantize_model(teacher, STATIC), [{"input": torch.randn(8, 16)[rank * 4 : rank * 4 + 4]}])
    save_file(running(ranges), f"{folder}/ranges{rank}.safetensors")
    for name in ("plain", "sam"):
        student = quantize_model(teacher, CONFIG)
        optimizer = (
            SAM(Clip(sgd(student), 1.0), student, perturb="synchronised") if name == "sam" else Clip(sgd(student), 1.0)
        )
        torch.manual_seed(1)
        given = [{"input": torch.randn(8, 16)[rank * 4 : rank * 4 + 4]} for _ in range(5)]
        distill(student, teacher, given, KL(), optimizer, 5, constant())
        save_file({str(i): w for i, w in enumerate(weights(student))}, f"{folder}/{name}{rank}.safetensors")


def test_two_processes_equal_one(tmp_path) -> None:
    from accelerate import debug_launcher

    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    debug_launcher(half_of_the_batch, (str(tmp_path),), num_processes=2)
    torch.manual_seed(2)
    texts = bert()
    student = quantize_model(texts, CONFIG)
    distill(student, texts, batches(3, pad=True), KL() + HiddenStates(BertLayer), sgd(student), 3, constant())
    files = [load_file(tmp_path / f"text{rank}.safetensors") for rank in (0, 1)]
    assert all(torch.equal(files[0][key], files[1][key]) for key in files[0])
    assert all(torch.allclose(files[0][str(i)], w, atol=1e-5) for i, w in enumerate(weights(student)))
    torch.manual_seed(0)
    teacher = mlp()
    torch.manual_seed(3)
    whole = running(calibrate(quantize_model(teacher, STATIC), [{"input": torch.randn(8, 16)}]))
    files = [load_file(tmp_path / f"ranges{rank}.safetensors") for rank in (0, 1)]
    assert all(torch.allclose(file[key], value) for file in files for key, value in whole.items())
    for name in ("plain", "sam"):
        student = quantize_model(teacher, CONFIG)
        optimizer = SAM(Clip(sgd(student), 1.0), student) if name == "sam" else Clip(sgd(student), 1.0)
        torch.manual_seed(1)
        given = [{"input": torch.randn(8, 16)} for _ in range(5)]
        distill(student, teacher, given, KL(), optimizer, 5, constant())
        files = [load_file(tmp_path / f"{name}{rank}.safetensors") for rank in (0, 1)]
        ranks = [[file[str(i)] for i in range(len(file))] for file in files]
        assert all(torch.equal(a, b) for a, b in zip(*ranks, strict=True))
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ranks[0], weights(student), strict=True))
