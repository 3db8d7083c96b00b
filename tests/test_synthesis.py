"""Sources that learn, and synthesizers that go on."""

import copy

import pytest
import torch
from torch import Tensor, nn

from zsaq.train import synthesis
from zsaq.train.objectives import Objective
from zsaq.train.pair import Batch, Pair
from zsaq.train.synthesis import Source, Synthesizer, synthesize


class Point(Source):
    def __init__(self, start: float = 3.0) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.full((2, 3), start))

    def forward(self) -> Batch:
        return {"input": self.x.clone()}


class Distance(Objective):
    """Squared distance of the teacher's answer to the student's."""

    def __call__(self, pair: Pair) -> Tensor:
        return (pair.teacher.logits - pair.student.logits).square().sum()


class Length(Objective):
    def __call__(self, pair: Pair) -> Tensor:
        return pair.teacher.logits.square().sum()


class Nothing(Objective):
    def __call__(self, pair: Pair) -> Tensor:
        return pair.batch["input"].detach().sum() * torch.ones((), requires_grad=True)


def linear(factor: float) -> nn.Linear:
    model = nn.Linear(3, 3, bias=False)
    nn.init.eye_(model.weight)
    model.weight.data *= factor
    return model


def synthesizer(source: Source, objective: Objective, lr: float = 0.1, **options) -> Synthesizer:
    return Synthesizer(source, objective, torch.optim.SGD(source.parameters(), lr), linear(2.0), **options)


def test_synthesis_steps_down_the_gradient_and_gives_the_last_batch() -> None:
    source = Point()
    losses: list[float] = []
    batch = synthesize(source, Length(), torch.optim.SGD(source.parameters(), 0.1), 2, linear(2.0), losses=losses)
    # d/dx 4 x^2 = 8 x: each step multiplies by 1 - 0.8; the batch is the one before the last step.
    torch.testing.assert_close(batch["input"], torch.full((2, 3), 3 * 0.2))
    torch.testing.assert_close(source.x.detach(), torch.full((2, 3), 3 * 0.04))
    assert not batch["input"].requires_grad and losses == pytest.approx([6 * 36, 6 * 36 * 0.04])


def test_each_next_is_one_step_even_under_no_grad_and_losses_are_kept() -> None:
    source = Point()
    stream = synthesizer(source, Length())
    with torch.no_grad():
        first, second = next(stream), next(stream)
    assert float(first["input"][0, 0]) == 3 and float(second["input"][0, 0]) == pytest.approx(0.6)
    assert stream.losses == pytest.approx([6 * 36, 6 * 36 * 0.04]) and iter(stream) is stream


def test_a_student_in_training_sees_gradients_pass_and_keeps_none() -> None:
    source, student = Point(), linear(1.0)
    before = copy.deepcopy(student.state_dict())
    stream = synthesizer(source, Distance(), student=student)
    next(stream)
    torch.testing.assert_close(source.x.detach(), torch.full((2, 3), 3 * (1 - 0.2)))  # (2 x - x)^2
    assert student.weight.grad is None and student.weight.requires_grad and not stream.teacher.training
    assert torch.equal(student.weight, before["weight"])
    assert not any(p.requires_grad for p in stream.teacher.parameters())


def test_several_optimizers_and_schedulers() -> None:
    class Two(Source):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.ones(1, 3)), nn.Parameter(torch.ones(1, 3))

        def forward(self) -> Batch:
            return {"input": torch.cat([self.a, self.b])}

    source = Two()
    fast, slow = torch.optim.SGD([source.a], 0.1), torch.optim.SGD([source.b], 0.01)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(fast, factor=0.5, patience=0, threshold=0.99)
    decay = torch.optim.lr_scheduler.StepLR(slow, 1, 0.1)
    stream = Synthesizer(source, Length(), [fast, slow], linear(2.0), scheduler=[plateau, decay])
    next(stream)
    torch.testing.assert_close(source.a.detach(), torch.full((1, 3), 0.2))
    torch.testing.assert_close(source.b.detach(), torch.full((1, 3), 0.92))
    next(stream)
    assert fast.param_groups[0]["lr"] == 0.05 and slow.param_groups[0]["lr"] == pytest.approx(1e-4)


def test_a_loss_that_is_not_finite_leaves_the_source_alone() -> None:
    source = Point(1e30)
    with pytest.raises(ValueError, match="synthesize, step 1: the loss is inf"):
        next(synthesizer(source, Length()))
    assert float(source.x[0, 0].detach()) == pytest.approx(1e30)


class Normed(Point):
    def __init__(self, value: float) -> None:
        super().__init__(value)
        self.norm = nn.BatchNorm1d(3)

    def forward(self) -> Batch:
        self.norm(self.x.expand(2, 3))
        return super().forward()


def test_a_loss_that_is_not_finite_leaves_the_sources_buffers_alone() -> None:
    source = Normed(1e30)
    before = {name: value.clone() for name, value in source.state_dict().items()}
    stream = Synthesizer(source, Length(), torch.optim.SGD([source.x], 0.1), linear(2.0))
    with pytest.raises(ValueError, match="The source is as it was before"):
        next(stream)
    assert all(torch.equal(value, before[name]) for name, value in source.state_dict().items())


def test_parts_of_a_run_share_no_seed_with_those_of_another() -> None:
    seeds = {synthesis.seed_of(seed, index) for seed in range(-2, 20) for index in range(20)}
    assert len(seeds) == 22 * 20 and all(0 <= seed < 2**48 for seed in seeds)
    assert synthesis.seed_of(0, 1) != synthesis.seed_of(1, 0) and synthesis.seed_of(3, 4) == synthesis.seed_of(3, 4)


def test_what_cannot_learn_is_refused() -> None:
    source = Point()
    with pytest.raises(ValueError, match="does not depend on the source"):
        next(synthesizer(source, Nothing()))
    with pytest.raises(ValueError, match="must hold parameters of the source"):
        Synthesizer(source, Length(), torch.optim.SGD(Point().parameters(), 0.1), linear(2.0))
    with pytest.raises(ValueError, match="steps is 0"):
        synthesize(source, Length(), torch.optim.SGD(source.parameters(), 0.1), 0, linear(2.0))


def test_processes_average_their_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    class Twin:
        """A second process with the same gradients: their sum is twice ours."""

        is_available = is_initialized = staticmethod(lambda: True)
        get_world_size = staticmethod(lambda: 2)
        get_rank = staticmethod(lambda: 1)
        all_reduce = staticmethod(lambda tensor: tensor.mul_(2))

    alone, together = Point(), Point()
    next(synthesizer(alone, Length()))
    assert synthesis.process_index() == 0
    monkeypatch.setattr(synthesis, "dist", Twin)
    stream = synthesizer(together, Length())
    next(stream)
    torch.testing.assert_close(together.x, alone.x)
    assert stream.losses == pytest.approx([6 * 36]) and synthesis.process_index() == 1
