import pytest
import torch
from torch import nn

from toys import batches, bert, mlp
from zsaq import Capture, Pair


class Counter:
    def __init__(self, model: nn.Module) -> None:
        self.calls = 0
        model.register_forward_pre_hook(self.count)

    def count(self, *_) -> None:
        self.calls += 1


def test_each_model_runs_at_most_once_and_only_when_looked_at() -> None:
    teacher, student = bert(), bert()
    counts = Counter(teacher), Counter(student)
    pair = Pair(teacher, student, batches(1)[0] | {"labels": torch.zeros(8, dtype=torch.int64)})
    assert [c.calls for c in counts] == [0, 0]
    assert torch.equal(pair.teacher.logits, pair.teacher.logits)
    assert [c.calls for c in counts] == [1, 0]
    again = pair.again()
    assert again.teacher is pair.teacher
    assert again.student is not pair.student
    assert [c.calls for c in counts] == [1, 2]


def test_taps_see_and_are_gone() -> None:
    model = bert()
    capture = Capture("teacher", nn.LayerNorm, "input")
    pair = Pair(model, model, batches(1)[0], (capture, Capture("student", lambda name, _: name == "classifier")))
    norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm)]
    assert [m for m, _ in pair.teacher.seen[capture]] == norms
    ((head, logits),) = next(iter(pair.student.seen.values()))
    assert head is model.classifier and torch.equal(logits, pair.student.logits)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_hooks_are_gone_after_an_error() -> None:
    model = bert()
    with pytest.raises(ValueError, match="input_ids or inputs_embeds"):
        Pair(model, model, {"nonsense": torch.zeros(1)}, (Capture("teacher", nn.LayerNorm),)).teacher  # noqa: B018
    assert not any(m._forward_hooks for m in model.modules())


def test_a_tap_that_finds_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="finds no module in BertForSequenceClassification"):
        Pair(bert(), bert(), batches(1)[0], (Capture("teacher", nn.Conv2d),)).teacher  # noqa: B018


def test_the_teacher_keeps_gradients_only_for_inputs_that_want_them() -> None:
    teacher = mlp()
    x = torch.randn(2, 16)
    assert not Pair(teacher, teacher, {"input": x}).teacher.logits.requires_grad
    assert Pair(teacher, teacher, {"input": x}).at(input=x.clone().requires_grad_()).teacher.logits.requires_grad
    assert Pair(teacher, teacher, {"input": x}).student.logits.requires_grad


def test_no_logits_no_pair() -> None:
    with pytest.raises(ValueError, match="answers no logits"):
        Pair(bert().bert, bert(), batches(1)[0]).teacher.logits  # noqa: B018
