"""What saves memory in training gives what is given without it, bit for bit."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

import toys
from language_toys import bpe, opt
from toys_training import CONFIG, constant, plain, weights
from zsaq import KL, SAM, Clip, HiddenStates, LayerWise, Objective, QuantConfig, distill, quantize_model
from zsaq.language.job import TextJob
from zsaq.language.sam_sga import sam_sga, student_of, student_optimizer
from zsaq.train import positions
from zsaq.train.recomputing import recomputing
from zsaq.train.widening import keep_narrow, released, widened

HALVES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
FAMILIES = pytest.mark.parametrize("family", ["bert", "gpt2", "opt", "llama"])


def equal(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


def blocks(model: nn.Module) -> type:
    return next(type(module) for module in model.modules() if isinstance(module, GradientCheckpointingLayer))


def ids(rows: int = 3) -> list[dict[str, torch.Tensor]]:
    return [{k: v for k, v in batch.items() if k != "token_type_ids"} for batch in toys.batches(rows, pad=True)]


@HALVES
@FAMILIES
def test_a_narrow_teacher_teaches_as_its_copy_in_float32_and_stays_as_it_is(family: str, dtype: torch.dtype) -> None:
    narrow = getattr(toys, family)().to(dtype)
    wide, before = copy.deepcopy(narrow).float(), copy.deepcopy(narrow).state_dict()
    students = []
    for teacher in (wide, narrow):
        keep_narrow(teacher)
        student = quantize_model(teacher, CONFIG).float()
        objective = KL() + HiddenStates(blocks(student))
        students.append(distill(student, teacher, ids(), objective, plain(student), 3, constant()))
    assert equal(*students)
    assert {p.dtype for p in narrow.parameters()} == {dtype}
    assert all(torch.equal(value, before[name]) for name, value in narrow.state_dict().items())


def test_a_model_is_widened_only_where_it_was_asked_for_and_as_long() -> None:
    model, other = nn.Linear(2, 2).half(), nn.Linear(2, 2).half()
    with released(model):
        keep_narrow(model)
        with pytest.raises(RuntimeError, match="stopped"), widened(model, other):
            with widened(model):  # a second time changes nothing
                pass
            assert model.weight.dtype == torch.float32 and other.weight.dtype == torch.float16
            raise RuntimeError("stopped")
        assert model.weight.dtype == torch.float16
    with widened(model):
        assert model.weight.dtype == torch.float16


@FAMILIES
@pytest.mark.parametrize("objective", ["ends", "layers"])
@pytest.mark.parametrize("sam", [False, True])
def test_blocks_that_are_computed_again_learn_the_same(family: str, objective: str, sam: bool) -> None:
    teacher = getattr(toys, family)()
    students, calls = [], []
    for recompute in (False, True):
        student: Any = quantize_model(teacher, CONFIG)
        kind, seen = blocks(student), []
        block = next(module for module in student.modules() if isinstance(module, kind))
        block.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        wanted: Objective = KL() + HiddenStates(kind) if objective == "ends" else LayerWise(kind)
        optimizer: Any = SAM(Clip(plain(student), 1.0), student) if sam else plain(student)
        distill(student, teacher, ids(), wanted, optimizer, 3, constant(recompute=recompute))
        assert "forward" not in vars(block)
        students.append(student)
        calls.append(len(seen))
    assert equal(*students) and calls[0] == calls[1] == (6 if sam else 3)


def test_a_forward_of_a_blocks_own_stays_its_own() -> None:
    model, calls = toys.llama(), []
    first, *others = [module for module in model.modules() if isinstance(module, blocks(model))]
    plain_forward = first.forward
    hooked = first.forward = lambda *args, **kwargs: calls.append(1) or plain_forward(*args, **kwargs)
    with recomputing(model):
        model(**ids()[0])
    assert first.forward is hooked and calls and not any("forward" in vars(block) for block in others)


def test_a_model_without_blocks_cannot_recompute() -> None:
    student = quantize_model(toys.mlp(), CONFIG)
    with pytest.raises(ValueError, match="Sequential has no blocks that can be computed again"):
        distill(student, toys.mlp(), [], KL(), plain(student), 1, constant(recompute=True))


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("shape", [(7, 30), (2, 5, 30), (1, 30)])
def test_a_few_positions_at_a_time_give_the_same_bits(direction: Any, shape, monkeypatch) -> None:
    answers = []
    for chunk in (2**22, 64):
        monkeypatch.setattr(positions, "CHUNK", chunk)
        rng = torch.Generator().manual_seed(0)
        p, q = (torch.randn(shape, generator=rng).requires_grad_() for _ in range(2))
        value = positions.by_position(KL(2.0, direction).divergence, p, q)
        (value * torch.arange(value.numel()).view(value.shape)).sum().backward()
        answers.append((value, p.grad, q.grad))
    assert all(torch.equal(a, b) for a, b in zip(*answers, strict=True))


@HALVES
@pytest.mark.parametrize("lora", [False, True])
def test_a_narrow_teacher_that_climbs_gives_the_student_of_a_wide_one(lora: bool, dtype: torch.dtype) -> None:
    if lora:
        pytest.importorskip("peft")
    students = []
    for narrow in (False, True):
        teacher: Any = opt(bpe()).to(dtype)  # type: ignore[arg-type]
        teacher = teacher if narrow else teacher.float()
        keep_narrow(teacher)
        job = TextJob.of(teacher, bpe(), max_length=12)
        job.batch_size = 2
        torch.manual_seed(0)
        ascent = job.ascent(0, lora=lora, lr=1e-2)
        shared = {p.data_ptr() for p in teacher.parameters()} & {
            p.data_ptr() for p in ascent.text.generator.parameters()
        }
        assert {p.dtype for p in ascent.text.generator.parameters() if p.requires_grad} == {torch.float32}
        assert bool(shared) == lora and (lora or ascent.reference is teacher)
        students.append(
            sam_sga(teacher, QuantConfig.parse("w2a8"), ascent.text, ascent, steps=4, warm=1, ratio=(1, 1), rho=0.1)
        )
        assert {p.dtype for p in teacher.parameters()} == {dtype if narrow else torch.float32}
    assert equal(*students)


def test_adamw_in_eight_bits_says_what_it_needs_or_steps() -> None:
    student = student_of(toys.llama(), CONFIG)
    try:
        import bitsandbytes  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        with pytest.raises(ValueError, match=r"8-bit AdamW needs bitsandbytes: pip install \"zsaq\[bnb\]\""):
            student_optimizer(student, 0.01, eight_bit=True)
        return
    assert type(student_optimizer(student, 0.01, eight_bit=True).innermost).__name__ == "AdamW8bit"
