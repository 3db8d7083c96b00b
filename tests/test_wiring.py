"""How a net is written changes nothing: in place or not, in which order its parts were registered, what it shares."""

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from vision_toys import CLASSES, images
from zsaq import Grid, ImageSpec, QuantConfig, calibrate, compensate, one_pass, quantize_model, reconstruct
from zsaq.train.calls import Calls, call_of, channels_of
from zsaq.train.chain import Chain, as_called, twin_of
from zsaq.train.pair import Capture, run_model
from zsaq.vision.models import blocks, classifier, feature_places
from zsaq.vision.presets import preset_config

ROUNDED = QuantConfig(Grid(3, symmetric=False))
BATCH = {"pixel_values": images(16, 16)}
SPEC = ImageSpec(CLASSES, 16)


class Residual(nn.Module):
    """Adds to its input and clips the sum: anew, in place in its input or, `own`, in what its norm put out, as
    torchvision's blocks do."""

    def __init__(self, inplace: bool, norm: nn.Module | None = None, own: bool = False) -> None:
        super().__init__()
        self.inplace, self.own, self.norm = inplace, own, norm or nn.BatchNorm2d(8)
        self.one, self.two = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.two(self.one(x).relu()))
        if not self.inplace:
            return (x + y).relu()
        into, other = (y, x) if self.own else (x, y)
        into += other
        return into.relu_()


class Net(nn.Module):
    """Two blocks; `late` registers its parts from behind."""

    def __init__(self, parts: list[nn.Module], late: bool = False) -> None:
        super().__init__()
        stem, head = nn.Conv2d(3, 8, 3, stride=2), nn.Linear(8, CLASSES)
        if late:
            self.head, self.second, self.first, self.stem = head, parts[1], parts[0], stem
        else:
            self.stem, self.first, self.second, self.head = stem, parts[0], parts[1], head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(self.stem(x))).mean((2, 3)))


def residual(inplace: bool, late: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return classifier(Net([Residual(inplace), Residual(inplace)], late).eval())


def plain(inplace: bool) -> nn.Module:
    """Layers with ReLUs between them, which no block holds."""
    torch.manual_seed(0)
    layers = (nn.Flatten(), nn.Linear(768, 16), nn.ReLU(inplace), nn.Linear(16, 16), nn.ReLU(inplace))
    return classifier(nn.Sequential(*layers, nn.Linear(16, CLASSES)).eval())


def fitted(teacher: nn.Module, how: str) -> dict[str, Tensor]:
    batches = [{"pixel_values": BATCH["pixel_values"].clone()}]
    student = quantize_model(teacher, preset_config("w3a8", "brecq", teacher, SPEC))
    if how == "one_pass":
        return one_pass(student, teacher, batches).state_dict()
    calibrate(student, batches)
    if how == "compensate":
        return compensate(student, batches, blocks(teacher)).state_dict()
    return reconstruct(student, teacher, batches, blocks(teacher), steps=4, batch_size=4, lr_bits=0.1).state_dict()


def own(inplace: bool) -> nn.Module:
    torch.manual_seed(0)
    return classifier(Net([Residual(inplace, own=True), Residual(inplace, own=True)]).eval())


# A block that writes into its input cannot learn: its gradient needs what was there.
@pytest.mark.parametrize(
    ("make", "how"),
    [(plain, "reconstruct"), (own, "reconstruct")]
    + [(make, how) for make in (plain, residual, own) for how in ("one_pass", "compensate")],
)
def test_what_is_done_in_place_is_done_all_the_same(make: Any, how: str) -> None:
    states = [fitted(make(inplace), how) for inplace in (False, True)]
    origin = make(False).state_dict()
    assert any(not torch.equal(value, origin[name]) for name, value in states[0].items() if name in origin)
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_layers_with_something_in_place_between_them_are_no_chain() -> None:
    names = [name for name, _ in blocks(plain(True))]
    assert Chain(plain(True), names, [BATCH]).forms is None
    assert Chain(plain(False), names, [BATCH]).forms is None


@pytest.mark.parametrize("between", [False, True])
def test_a_block_that_writes_into_its_input_is_told_by_what_it_was_given(between: bool) -> None:
    given, answers = [], []
    for inplace in (False, True):
        model = residual(inplace)
        chain = Chain(model, ["module.first", "module.second"], [BATCH], last=True)
        assert chain.forms == [0, 0]
        if between:  # where blocks are no chain, each call is one of its own
            chain.forms = None
        before, (answer,) = twin_of(chain, 0)
        given.append(before[0][0][0])
        answers.append(answer)
    assert torch.equal(*given)
    assert torch.equal(*answers)
    assert not torch.equal(given[0], answers[0])


def test_a_call_that_is_looked_at_is_what_the_block_was_given() -> None:
    models = [residual(inplace) for inplace in (False, True)]
    calls = [call_of(model, model.get_submodule("module.first"), BATCH, answers=True) for model in models]
    assert torch.equal(calls[0][0][0], calls[1][0][0])
    assert torch.equal(calls[0][2], calls[1][2])


def test_what_a_module_put_out_is_seen_before_it_is_written_into() -> None:
    seen = []
    for inplace in (False, True):
        model = own(inplace)
        capture = Capture("teacher", feature_places(model))
        pixels = BATCH["pixel_values"].clone().requires_grad_()
        out = run_model(model, {"pixel_values": pixels}, (capture,))
        places = [value for _, value in out.seen[capture]]
        slopes = torch.autograd.grad(out.logits.square().sum(), places)
        seen.append([out.logits, *places, *slopes])
        assert all((value < 0).any() for value in places)
    assert all(map(torch.equal, *seen))


def test_of_a_tuple_the_first_is_seen_before_it_is_written_into() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, str]:
            return x * 1, "more"

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.two, self.head = Two(), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            first, more = self.two(x)
            assert more == "more"
            return self.head(first.relu_())

    capture = Capture("teacher", Two)
    x = torch.tensor([[-1.0, 2.0, -3.0]])
    (_, value), *_ = run_model(Whole(), {"x": x}, (capture,)).seen[capture]
    assert torch.equal(value, x)


@pytest.mark.parametrize("how", ["compensate", "reconstruct"])
def test_the_order_of_registration_does_not_count(how: str) -> None:
    early, late = residual(False), residual(False, late=True)
    late.load_state_dict(early.state_dict())
    names = [name for name, _ in blocks(late)]
    assert names == ["module.head", "module.second", "module.first", "module.stem"]
    assert as_called(late, names, BATCH) == names[::-1]
    states = [fitted(model, how) for model in (early, late)]
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_a_norm_of_two_blocks_learns_with_the_first() -> None:
    torch.manual_seed(0)
    shared = nn.BatchNorm2d(8)
    teacher = classifier(Net([Residual(False, shared), Residual(False, shared)]).eval())
    gains = []
    for several in (2, 3):  # with the stem
        student = calibrate(quantize_model(teacher, ROUNDED), [BATCH])
        options: Any = {"steps": 6, "batch_size": 4, "lr_norm": 1e-2}
        reconstruct(student, teacher, [BATCH], blocks(teacher)[:several], **options)
        gains.append(cast(Tensor, student.get_submodule("module.first.norm").weight).detach())
    assert not torch.equal(gains[0], shared.weight)
    assert torch.equal(*gains)


class Twice(nn.Module):
    """A convolution that is called twice: one answer goes to a BatchNorm, the other does not."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first, self.norm = first, nn.BatchNorm2d(8)
        self.conv, self.stem, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(3, 8, 3), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.stem(x))
        x = self.conv(self.norm(x).relu()) if self.first else self.norm(self.conv(x.relu()))
        return self.head(x.relu().mean((2, 3)))


@pytest.mark.parametrize("first", [False, True])
def test_a_layer_that_is_called_twice_is_corrected_for_its_first_call(first: bool) -> None:
    torch.manual_seed(0)
    teacher = classifier(Twice(first).eval())
    student = quantize_model(teacher, ROUNDED)
    one_pass(student, teacher, [BATCH])
    after, before = (cast(Tensor, model.get_submodule("module.conv").bias) for model in (student, teacher))
    if first:  # the BatchNorm corrects it
        assert torch.equal(after, before)
        return
    means: list[Tensor] = []
    for model in (teacher, student):
        conv = model.get_submodule("module.conv")
        handle = conv.register_forward_hook(lambda module, args, answer: means.append(answer.mean((0, 2, 3))))
        with torch.no_grad():
            run_model(model, BATCH)
        handle.remove()
    assert not torch.equal(after, before)
    assert torch.allclose(means[0], means[2], atol=1e-5)


@pytest.mark.parametrize(("block", "shape", "axis"), [(nn.Conv2d(3, 7, 1), (2, 7, 5, 9), 1),
                                                      (nn.Linear(4, 9), (2, 7, 5, 9), -1),
                                                      (nn.Identity(), (2, 7, 9), -1)])  # fmt: skip
def test_errors_are_summed_over_channels(block: nn.Module, shape: tuple[int, ...], axis: int) -> None:
    ones = torch.ones(shape)
    assert channels_of(block, ones) == axis
    calls = Calls(ones, ones, ones, (), {}, channels=axis)
    assert calls.error(ones, torch.arange(2)).item() == shape[axis]
