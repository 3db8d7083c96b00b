"""Attention whose two products are products of rounded numbers, and what is an attention at all.

query times key, and probabilities times value: each of the four is rounded onto a static grid of the whole tensor, as
PTQ4ViT (Yuan et al. 2021, arXiv 2111.12293), FQ-ViT (Lin et al. 2021, arXiv 2111.13824) and PSAQ-ViT do at 8 bits.
An attention is found by its parts, as transformers names them: q_proj, k_proj, v_proj, and o_proj or out_proj.
"""

import inspect
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from zsaq.quant.config import QuantConfig
from zsaq.quant.grid import Grid
from zsaq.quant.layers import ACTIVATIONS, QuantActivation, swap_activation
from zsaq.quant.quantizer import Quantizer
from zsaq.quant.ranges import input_range

ROUNDED: Final = "zsaq_rounded"
ROUNDINGS: Final = ("query", "key", "probabilities", "value")
EAGER: Final = "eager_attention_forward"  # what transformers calls a model's own function; some put a word before it
HARMLESS: Final = frozenset(  # arguments that change nothing in eval mode, or stand in the mask too
    "scaling dropout is_causal sliding_window position_ids cache_position past_key_values use_cache deterministic "
    "cu_seq_lens_q cu_seq_lens_k max_length_q max_length_k seq_idx num_items_in_batch "
    "output_attentions output_hidden_states output_router_logits".split()
)
SHARPNESS: Final = (1.0, 30.0)  # deviations of the scores that an attention is tried with
NEAR: Final = 1e-3  # of the largest; float noise is a hundredth of it


def attention_of(module: nn.Module) -> tuple[nn.Module, int] | None:
    """The output projection of an attention, and its number of heads; None for any other module."""
    children = module._modules
    out = next((children[name] for name in ("o_proj", "out_proj") if children.get(name) is not None), None)
    heads = getattr(module, "num_attention_heads", getattr(module, "num_heads", None))
    if out is None or type(heads) is not int or any(children.get(f"{name}_proj") is None for name in "qkv"):
        return None
    return out, heads


@final
class Rounded(QuantActivation, nn.Identity):
    """One of the four, rounded."""


@final
class View:
    """A model's configuration as a rounding attention sees it, whatever implementation is set for the model."""

    _attn_implementation: Final = ROUNDED

    def __init__(self, config: Any) -> None:
        self.whole: Final = config

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole, name)


class QuantAttention(nn.Module):
    """An attention that rounds what its products take. Never constructed: `swap_attention` gives a module its class."""

    roundings: nn.ModuleDict

    @property
    def config(self) -> View:
        return View(vars(self)["config"])

    @property
    def grid(self) -> Grid:
        rounding = self.roundings[ROUNDINGS[0]]
        assert isinstance(rounding, Rounded)
        return rounding.output_quantizer.grid

    def check(self) -> None:
        """Raises ValueError for a static range that nothing or nonsense has filled."""
        for rounding in self.roundings.values():
            assert isinstance(rounding, Rounded)
            rounding.output_quantizer.ranges.check()


def rounded_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None,
    scaling: float | None = None, dropout: float = 0.0, **given: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """softmax(scaling * q k^T + mask) v, [b, s, h, d], of q, k, softmax and v that are rounded; and the softmax.

    What transformers calls for a `QuantAttention`. Raises ValueError for what would change the answer in other ways.
    """
    more = [name for name, value in given.items() if value is not None and name not in HARMLESS]
    causal = given.get("is_causal") or getattr(module, "is_causal", False)
    if more or causal or (attention_mask is not None and attention_mask.ndim != 4):
        what = ", ".join(more) or ("a causal mask" if causal else f"a mask of {attention_mask.ndim} dimensions")  # type: ignore[union-attr]
        raise ValueError(
            f"{type(module).__mro__[2].__name__} gives its attention {what}, which is not known with rounded products: "
            "leave attention in floats (QuantConfig.attention=None)"
        )
    rounding: Any = module.roundings
    query, key, value = (rounding[n](t) for n, t in (("query", query), ("key", key), ("value", value)))
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    probabilities = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    probabilities = rounding["probabilities"](nn.functional.dropout(probabilities, dropout, module.training))
    return (probabilities @ value).transpose(1, 2).contiguous(), probabilities


AttentionInterface.register(ROUNDED, rounded_attention)


def own_function(module: nn.Module) -> Callable[..., Any] | None:
    """The function by which a module computes attention if it asks transformers for one; None if it does not."""
    forward = inspect.unwrap(type(module).forward)
    names = forward.__code__.co_names
    called = [name for name in names if name.endswith(EAGER)]
    asks = "ALL_ATTENTION_FUNCTIONS" in names and "_attn_implementation" in names
    return forward.__globals__.get(called[0]) if asks and called else None


@torch.no_grad()
def why_not(module: nn.Module) -> str | None:
    """Why the products of an attention cannot be rounded; None where they can."""
    own, name = own_function(module), type(module).__name__
    found, width = attention_of(module), getattr(module._modules["q_proj"], "out_features", None)
    assert found is not None
    if own is None or not hasattr(module, "config"):
        return f"{name} multiplies by itself, where nothing can be rounded"
    if getattr(module, "is_causal", False):
        return f"{name} is causal, which is not known with rounded products"
    if width is None or width % found[1] or getattr(module._modules["k_proj"], "out_features", None) != width:
        return f"{name} shares keys among heads, which is not known with rounded products"
    place, rng = next(module.parameters()).device, torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, found[1], 4, width // found[1], generator=rng).to(place) for _ in ROUNDINGS[1:])
    for sharpness in SHARPNESS:
        want = own(module, q * sharpness, k, v, None, scaling=1.0, dropout=0.0)[0]
        got = ((q * sharpness @ k.transpose(2, 3)).softmax(-1) @ v).transpose(1, 2)
        if got.shape != want.shape or not torch.allclose(got, want, 0, NEAR * float(want.abs().max())):
            return f"{name} computes more than softmax(q k) v, which is not known with rounded products"
    return None


def rounds(module: nn.Module) -> bool:
    """Whether a float module has a form that rounds what passes, and no weight of its own that is rounded."""
    return type(module) in ACTIVATIONS or attention_of(module) is not None


def swap_rounding(module: nn.Module, config: QuantConfig) -> None:
    """Give such a module its class and quantizers, in place. Raises ValueError for a configuration without its grid."""
    attends = attention_of(module) is not None
    grid = config.attention if attends else config.activation
    if grid is None:
        what = "attention" if attends else "activations"
        raise ValueError(f"the configuration has no grid for {what}, yet names it; save the student anew")
    (swap_attention if attends else swap_activation)(module, grid)


@cache
def form_of(own: type) -> type:
    return type(QuantAttention.__name__, (QuantAttention, own), {})


def swap_attention(module: nn.Module, grid: Grid) -> None:
    """Give an attention its class and quantizers, in place."""
    module.__class__ = form_of(type(module))
    assert isinstance(module, QuantAttention)
    module.roundings = nn.ModuleDict({name: nn.Identity() for name in ROUNDINGS})
    for rounding in module.roundings.values():
        rounding.__class__ = Rounded
        assert isinstance(rounding, Rounded)
        rounding.output_quantizer = Quantizer(grid, input_range(grid))


def quant_attentions(model: nn.Module) -> Iterator[tuple[str, QuantAttention]]:
    """Names and attentions with rounded products, each once."""
    for name, module in model.named_modules():
        if isinstance(module, QuantAttention):
            yield name, module
