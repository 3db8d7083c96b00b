"""The one trainer against plain loops, on one process and on two."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.models.bert.modeling_bert import BertLayer

from toys import batches, bert, mlp
from toys_training import CONFIG, constant, logged, plain, sgd, weights
from zsaq import (
    KL,
    SAM,
    Clip,
    Grid,
    HiddenStates,
    LayerWise,
    Loop,
    QuantConfig,
    calibrate,
    coverage,
    distill,
    quantize_model,
    repeat,
)
from zsaq.quant.ranges import static_ranges
from zsaq.train.optim import Wrapper

STATIC = QuantConfig(Grid(8), Grid(8, symmetric=False, per="tensor"))


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
    lines = logged(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert [line["loss"] for line in lines] == pytest.approx(losses, rel=1e-4)
    assert {"KL", "HiddenStates", "lr", "seconds"} <= set(lines[0])


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


class Ascending:
    def __init__(self) -> None:
        self.at: list[float] = []

    def ascend(self, divergence):
        x = torch.randn(4, 16, requires_grad=True)
        value, logits = divergence({"input": x})
        (gradient,) = torch.autograd.grad(value, x)
        assert gradient.abs().sum() > 0 and logits.shape == (4, 4)
        self.at.append(value.item())
        return {"ascended": value.item()}


@pytest.mark.parametrize(("ratio", "ascents"), [((2, 1), 2), ((3, 2), 2), ((1, 0), 0), ((5, 1), 1)])
def test_the_adversary_moves_after_every_few_steps(ratio: tuple[int, int], ascents: int, tmp_path) -> None:
    teacher, student, adversary = mlp(), quantize_model(mlp(), CONFIG), Ascending()
    given = repeat([{"input": torch.randn(4, 16)}])
    distill(
        student, teacher, given, KL(), plain(student), 6, constant(folder=tmp_path), adversary=adversary, ratio=ratio
    )
    assert len(adversary.at) == ascents
    assert (tmp_path / "distill.jsonl").read_text().count("ascended") == (
        ascents if ratio[1] < 2 else ascents // ratio[1]
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
    rates = [line["lr"] for line in logged(tmp_path)]
    assert rates == pytest.approx([0.0, 5e-4, 1e-3, 5e-4]), "of the step itself"
    assert "gap" in (tmp_path / "distill.jsonl").read_text()


@pytest.mark.parametrize(("warmup", "rises"), [(0.0, [1.0, 1.0, 1.0, 1.0]), (0.5, [0.0, 0.5, 1.0, 1.0])])
def test_a_constant_rate_rises_over_its_warmup_too(warmup: float, rises: list[float], tmp_path) -> None:
    teacher, student = mlp(), quantize_model(mlp(), CONFIG)
    loop, seen = Loop(schedule="constant", warmup=warmup, folder=tmp_path), [{"input": torch.randn(4, 16)}] * 4
    distill(student, teacher, seen, KL(), plain(student, 1.0), 4, loop)
    assert [line["lr"] for line in logged(tmp_path)] == rises


def running(student: nn.Module) -> dict[str, torch.Tensor]:
    return {f"{i}{key}": value for i, each in enumerate(static_ranges(student)) for key, value in each.named_buffers()}


class Rank:
    """An adversary that measures something else on each process."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def ascend(self, divergence) -> dict[str, float]:
        return {"rank": float(self.rank)}


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
        optimizer = SAM(Clip(sgd(student), 1.0), student) if name == "sam" else Clip(sgd(student), 1.0)
        torch.manual_seed(1)
        given = [{"input": torch.randn(8, 16)[rank * 4 : rank * 4 + 4]} for _ in range(5)]
        loop = constant(folder=Path(folder, name) if rank == 0 else None)
        distill(student, teacher, given, KL(), optimizer, 5, loop, adversary=Rank(rank), ratio=(2, 1))
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
        files = [load_file(tmp_path / f"{name}{rank}.safetensors") for rank in (0, 1)]
        assert all(torch.equal(files[0][key], files[1][key]) for key in files[0])
    student = quantize_model(teacher, CONFIG)
    torch.manual_seed(1)
    given = [{"input": torch.randn(8, 16)} for _ in range(5)]
    distill(student, teacher, given, KL(), Clip(sgd(student), 1.0), 5, constant(folder=tmp_path / "alone"))
    ends = load_file(tmp_path / "plain0.safetensors")
    assert all(torch.allclose(ends[str(i)], w, atol=1e-5) for i, w in enumerate(weights(student)))
    together, alone = (logged(tmp_path / name) for name in ("plain", "alone"))
    assert [line["loss"] for line in together] == pytest.approx([line["loss"] for line in alone], rel=1e-4)
    for line in [*together, *logged(tmp_path / "sam")]:
        assert line["loss"] == pytest.approx(line["KL"], rel=1e-6), "a loss of one process beside terms of both"
        assert line.get("rank", 0.5) == 0.5
    assert [line["step"] for line in together if "rank" in line] == [2, 4]
