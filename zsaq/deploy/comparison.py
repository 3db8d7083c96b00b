"""A runtime beside the plain rule: each layer alone, and what passes from layer to layer (see `zsaq.deploy.parity`)."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from zsaq.io.inputs import answers_of
from zsaq.quant.codes import dequantize, groups, wide
from zsaq.quant.kinds import factor_of
from zsaq.quant.layers import quant_activations
from zsaq.quant.packed import PackedConv2d, PackedEmbedding, PackedLayer, packed_layers
from zsaq.quant.packing import unpack
from zsaq.quant.quantizer import Quantizer
from zsaq.quant.ranges import floored

TOLERANCE: Final = 1e-5
NEAR: Final = 2.0**-21  # relative distance from a rounding tie that one float32 operation more or less can take
Answers = dict[str, Tensor]
Seen = dict[str, list[tuple[Tensor, Tensor]]]  # by layer: what went in and came out, call by call


def round_plainly(
    x: Tensor, quantizer: Quantizer | None, stretched: bool = False, near: float = NEAR
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, float64 values, and the step where an input is so near a tie that either code is right, else 0.

    All have x's shape [..., in]. `stretched`: dynamic symmetric scales are absmax / ((2^bits - 1) / 2), the rule of
    compressed-tensors.
    """
    if quantizer is None:
        return x, x.double(), torch.zeros_like(x, dtype=torch.float64)
    grid = quantizer.grid
    view = wide(groups(x, grid))
    if quantizer.ranges.static:
        scale, zero = quantizer.ranges(view, grid)
    elif grid.symmetric:
        amplitude = (2**grid.bits - 1) / 2 if stretched else grid.amplitude
        scale, zero = floored(view.abs().amax(-1, keepdim=True) / amplitude), grid.zero
    else:
        low, high = view.amin(-1, keepdim=True).clamp(max=0), view.amax(-1, keepdim=True).clamp(min=0)
        scale = floored((high - low) / grid.amplitude)
        zero = (-low / scale).round().clamp(grid.low, grid.high)
    place = view / scale + zero
    codes = place.round().clamp(grid.low, grid.high)
    tie = ((place - place.floor() - 0.5).abs() <= near * place.abs().clamp_min(1)).double()
    values = (codes.double() - zero) * scale.double()
    return tuple(v.expand_as(view).reshape(x.shape) for v in (codes, values, tie * scale.double()))  # type: ignore[return-value]


def apply_plainly(layer: PackedLayer, x: Tensor, stretched: bool = False, near: float = NEAR) -> tuple[Tensor, Tensor]:
    """The layer's rule in float64, from its codes, and by how much rounding ties may move it."""
    owner = layer if layer.table is None else layer.table
    codes = unpack(owner.codes, owner.grid.bits, owner.shape).short() + owner.grid.low
    weight = dequantize(codes, owner.scales().double(), owner.zeros(), owner.grid)
    if isinstance(layer, PackedEmbedding):
        return (y := F.embedding(x, weight) * factor_of(layer)), torch.zeros_like(y)
    bias = None if layer.bias is None else layer.bias.double()
    _, values, steps = round_plainly(x, layer.input_quantizer, stretched, near)
    if isinstance(layer, PackedConv2d):
        weight = weight.view(layer.out_channels, -1, *layer.kernel_size)
        return layer._conv_forward(values, weight, bias), layer._conv_forward(steps, weight.abs(), None)
    return F.linear(values, weight, bias), F.linear(steps, weight.abs())


def difference(got: Tensor, want: Tensor, slack: Tensor | float = 0.0) -> float:
    """max(|got - want| - slack, 0) / max |want|; the largest float for what is not finite or has another shape."""
    if got.shape != want.shape:
        return sys.float_info.max
    if not got.numel():
        return 0.0
    far = ((got.double() - want.double()).abs() - slack).clamp_min(0).max() / want.double().abs().max().clamp_min(1e-30)
    return float(far) if far.isfinite() else sys.float_info.max


def in_double(norm: nn.Module, x: Tensor) -> Tensor:
    """A norm's output for x [b, c, h, w] in float64."""
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None and norm.running_var is not None
    weight, bias = (None if value is None else value.double() for value in (norm.weight, norm.bias))
    return F.batch_norm(x, norm.running_mean.double(), norm.running_var.double(), weight, bias, eps=norm.eps)


def norms_of(model: PreTrainedModel, inputs: dict[str, Tensor]) -> dict[str, str]:
    """The BatchNorm that reads each packed convolution's output, by their names."""
    outputs: dict[int, tuple[str, Tensor]] = {}  # of convolutions, by their id; the tensor is kept so that it stays one
    norms: dict[str, str] = {}

    def look(name: str, module: nn.Module, x: Tensor, y: Tensor) -> None:
        if isinstance(module, PackedConv2d):
            outputs[id(y)] = (name, y)
        elif id(x) in outputs:
            norms[outputs[id(x)][0]] = name

    names = [name for name, module in model.named_modules() if isinstance(module, PackedConv2d | nn.BatchNorm2d)]
    with hooked(model, names, look):
        model(**inputs)
    return norms


@contextmanager
def hooked(model: nn.Module, names: Any, hook: Any) -> Iterator[None]:
    """`hook(name, module, input, output)` after each call of the named modules; what it returns replaces the output.

    What the model draws inside, it draws alike each time.
    """
    modules = dict(model.named_modules())
    handles = [
        modules[name].register_forward_hook(lambda module, i, o, name=name: hook(name, module, i[0], o))
        for name in names
    ]
    try:
        with torch.random.fork_rng([]), torch.no_grad():
            torch.manual_seed(0)
            yield
    finally:
        for handle in handles:
            handle.remove()


def see(model: PreTrainedModel, names: Any, inputs: dict[str, Tensor]) -> tuple[Answers, Seen]:
    """What the model answers, and what passes the named layers: copies, since a model may go on in the same memory."""
    seen: Seen = {}
    with hooked(model, names, lambda name, _, i, o: seen.setdefault(name, []).append((i.clone(), o.clone()))):
        return answers_of(model(**inputs)), seen


def apart(got: Answers, want: Answers) -> float:
    """The largest `difference` of any answer; the largest float for another number of them."""
    return max(map(difference, got.values(), want.values())) if len(got) == len(want) else sys.float_info.max


@final
class Differences:
    """The largest relative differences of one runtime from the student, over all inputs; all 0 at the start."""

    def __init__(
        self, model: PreTrainedModel, stretched: bool = False, norms: dict[str, str] | None = None, near: float = NEAR
    ) -> None:
        """`stretched`, `near`: see `round_plainly`. `norms`: of the convolutions that the runtime computes with their
        norm."""
        self.norms = norms or {}
        self.model, self.stretched, self.near = model, stretched, near
        self.packed = dict(packed_layers(model))
        self.rounding = dict(quant_activations(model))
        self.alone: dict[str, float] = {}
        self.between: dict[str, float] = {}
        self.called: set[str] = set()
        self.end, self.codes, self.across, self.stray = 0.0, 0, 0, 0.0

    def add(self, inputs: dict[str, Tensor], answers: Answers, seen: Seen, deployed: Answers | None = None) -> None:
        """What a runtime did with `inputs`; `deployed`: its answers when it is not watched, if they may differ."""
        want, own = see(self.model, self.packed | self.rounding, inputs)
        self.called |= own.keys() & self.packed.keys()
        across = 0
        for name in own.keys() & seen.keys():
            for (here, _), (there, _) in zip(own[name], seen[name], strict=False):
                if (quantizer := self.packed[name].input_quantizer) is not None:
                    codes = [round_plainly(x.reshape(here.shape), quantizer)[0] for x in (here, there)]
                    across, self.codes = across + int((codes[0] != codes[1]).sum()), self.codes + here.numel()
        waiting = {name: list(calls) for name, calls in seen.items()}
        folded: dict[str, tuple[str, Tensor, Tensor, Tensor]] = {}

        rounded = {name: [out for _, out in own.get(name, ())] for name in self.rounding}

        def follow(name: str, layer: Any, x: Tensor, y: Tensor) -> Tensor:
            nonlocal across
            if name in self.rounding:  # what the runtime's floats were rounded to, and the student's own
                across, self.codes = across + int((rounded[name].pop(0) != y).sum()), self.codes + y.numel()
                return y
            if name in folded:
                name, out, rule, slack = folded.pop(name)
                rule, slack = in_double(layer, rule), in_double(layer, rule + slack) - in_double(layer, rule)
                return self.meet(name, out.reshape(y.shape), rule, slack.abs())
            if not waiting[name]:
                self.alone[name] = sys.float_info.max  # the runtime calls it less often
                return y
            there, out = waiting[name].pop(0)
            there = there.reshape(x.shape)
            self.between[name] = max(self.between.get(name, 0.0), self.brought(name, there, x))
            rule, slack = apply_plainly(layer, there, self.stretched, self.near)
            if name in self.norms:
                folded[self.norms[name]] = (name, out, rule, slack)
                return y
            return self.meet(name, out.reshape(y.shape), rule, slack)

        watched = [*waiting, *(self.norms[n] for n in waiting if n in self.norms), *self.rounding]
        with hooked(self.model, watched, follow):
            led = answers_of(self.model(**inputs))
        self.across += across
        for name, answer in led.items():
            there = answers.get(name, torch.empty(0))
            self.between[name] = max(self.between.get(name, 0.0), difference(there, answer))
        end = apart(answers if deployed is None else deployed, want)
        self.end = max(self.end, end)
        self.stray = self.stray if across else max(self.stray, end)

    def meet(self, name: str, out: Tensor, rule: Tensor, slack: Tensor) -> Tensor:
        self.alone[name] = max(self.alone.get(name, 0.0), difference(out, rule, slack))
        return out

    def brought(self, name: str, there: Tensor, x: Tensor) -> float:
        """How far from x [..., in] is what the runtime brought, floats or what these become when they are rounded."""
        far = difference(there, x)
        if (
            far > TOLERANCE
            and isinstance(layer := self.packed[name], PackedConv2d)
            and layer.input_quantizer is not None
        ):
            _, values, steps = round_plainly(x, layer.input_quantizer, near=TOLERANCE)
            far = min(far, difference(there, values, steps))
        return far

    def facts(self, absent: set[str] | frozenset[str] = frozenset()) -> dict[str, Any]:
        """For the parity report. It agrees if every layer that the student calls was seen alone, and all is near.

        `absent`: layers that the runtime does not have; its answers show whether they reach any.
        """
        unseen = sorted(self.called - self.alone.keys() - absent)
        far = sorted(
            {n for differences in (self.alone, self.between) for n, v in differences.items() if not v <= TOLERANCE}
        )
        same_rule = not self.stretched
        good = bool(self.alone) and not unseen and not far and (self.stray <= TOLERANCE or not same_rule)
        return {
            "agrees": good,
            "disagree": far,
            "worst": {"alone": worst(self.alone), "between": worst(self.between)},
            "end_to_end": {"relative": self.end, "codes": self.codes, "codes_across_a_tie": self.across},
            "layers": self.alone,
            "between": self.between,
            "layers_not_seen_alone": unseen,
            "layers_that_reach_no_answer": sorted(self.called & absent),
            "layers_never_called": sorted(self.packed.keys() - self.called),
        }


def worst(differences: dict[str, float]) -> dict[str, Any] | None:
    name = max(differences, key=lambda name: differences[name], default=None)
    return None if name is None else {"at": name, "relative": differences[name]}
