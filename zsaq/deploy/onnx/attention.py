"""Attention in a trace: one fused operator where that computes what the student does, else the student's own function.

A model hands its attention more than query, key, value, mask and scale (soft-caps, sinks, biases), and the function may
read more from the module. So nothing is taken for granted: each attention is tried on random queries before the trace,
and what differs from the plain rule, or is given an argument that no one has listed here, is traced as the model's own
operations.
"""

import inspect
from collections.abc import Callable
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.onnx.ops import symbolic
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

from zsaq.deploy.onnx.operators import MICROSOFT
from zsaq.quant.attention import EAGER, HARMLESS

ATTENTION: Final = "zsaq_onnx"
SHARPNESS: Final = (0.0, 1.0, 40.0)  # deviations of the scores that each attention is tried with
NEAR: Final = 1e-3  # of the largest; float noise at the sharpest is a hundredth of it


def plain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """softmax(scale * q k^T + mask) v; query [b, h, s, d], key and value [b, h or fewer, t, d], to [b, s, h, d]."""
    key, value = (each_head(tensor, query.shape[1]) for tensor in (key, value))
    scores = query @ key.transpose(2, 3) * scale
    return ((scores if mask is None else scores + mask).softmax(-1) @ value).transpose(1, 2)


def fused(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """The same as one operator."""
    batch, heads, length, _ = query.shape
    key, value = (each_head(tensor, heads) for tensor in (key, value))
    q, k, v = (t.transpose(1, 2).reshape(batch, -1, heads * t.shape[3]) for t in (query, key, value))
    if mask is not None and isinstance(mask.shape[2], int) and mask.shape[2] == 1:
        mask = mask.expand(-1, -1, length, -1)  # the operator wants a row for each query
    inputs = (q, k, v) if mask is None else (q, k, v, None, None, mask)
    attributes = {"num_heads": heads, "scale": scale}
    shape = (*q.shape[:2], v.shape[2])
    y = symbolic(f"{MICROSOFT}MultiHeadAttention", inputs, attributes, dtype=q.dtype, shape=shape)
    return y.reshape(batch, length, heads, value.shape[3])


def each_head(tensor: Tensor, heads: int) -> Tensor:
    """Keys or values that several heads share, once for each."""
    return tensor if tensor.shape[1] == heads else tensor.repeat_interleave(heads // tensor.shape[1], 1)


def scale_of(query: Tensor, given: dict[str, Any]) -> float:
    return float(given.get("scaling", query.shape[-1] ** -0.5))


@final
class Attention:
    """What `model` calls for its attention from now on. `choose` on a pass of real shapes, then trace.

    `fusing`: by the one operator, which is ONNX Runtime's; else by the plain rule in operators of the standard.
    """

    def __init__(self, model: PreTrainedModel, fusing: bool = True) -> None:
        self.rule: Final = fused if fusing else plain
        configs = [module.config for module in model.modules() if hasattr(module, "config")]
        self.kinds: Final[dict[int, str]] = {
            id(c): getattr(c, "_attn_implementation", None) or "eager" for c in configs
        }
        self.plain: Final[dict[int, bool]] = {}
        self.choosing = False
        self.unknown: Final[list[str]] = []
        AttentionInterface.register(ATTENTION, self)
        AttentionMaskInterface.register(ATTENTION, eager_mask)
        model.set_attn_implementation(ATTENTION)

    def choose(self, model: PreTrainedModel, inputs: dict[str, Tensor]) -> Any:
        """Decide for every attention on the way; what the model answers. `unknown` names modules that have no rule."""
        self.choosing = True
        output = model(**inputs)
        self.choosing = False
        return output

    def own(self, module: nn.Module) -> Callable[..., tuple[Tensor, Any]] | None:
        """The function that the module called in the student; None if it cannot be found."""
        forward = inspect.unwrap(type(module).forward)
        known, called = forward.__globals__, [n for n in forward.__code__.co_names if n.endswith(EAGER)]
        eager = known.get(called[0] if called else EAGER)
        kind = self.kinds.get(id(getattr(module, "config", None)), "eager")
        return known.get("ALL_ATTENTION_FUNCTIONS", AttentionInterface()).get_interface(kind, eager)

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None,
        scaling: float | None = None, **given: Any,
    ) -> tuple[Tensor, None]:  # fmt: skip
        given |= {} if scaling is None else {"scaling": scaling}
        if self.choosing:
            fits = self.is_plain(module, query, key, value, attention_mask, given)
            self.plain[id(module)] = self.plain.get(id(module), True) and fits
        if self.plain[id(module)]:
            return self.rule(query, key, value, attention_mask, scale_of(query, given)), None
        own = self.own(module)
        assert own is not None
        return own(module, query, key, value, attention_mask, **given)[0], None

    def is_plain(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, given: dict[str, Any]
    ) -> bool:
        """Whether the module's own function is the plain rule, for flat and for sharp scores."""
        own = self.own(module)
        if own is None:
            self.unknown.append(type(module).__name__)
            return True
        if any(argument is not None for name, argument in given.items() if name not in HARMLESS):
            return False
        scale, rng = scale_of(query, given), torch.Generator().manual_seed(0)
        q, k, v = (torch.randn(t.shape, generator=rng) for t in (query, key, value))
        for sharpness in SHARPNESS:
            queries = q * sharpness / (abs(scale) * q.shape[-1] ** 0.5)
            want = own(module, queries, k, v, mask, **given)[0]
            got = plain(queries, k, v, mask, scale)
            if got.shape != want.shape or not torch.allclose(got, want, 0, NEAR * float(want.abs().max())):
                return False
        return True
