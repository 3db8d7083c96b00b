"""Experts that transformers keeps in one tensor each (Mixtral, Qwen3-MoE, ...), taken apart into layers.

A fused module holds `gate_up_proj` (or `up_proj`) and `down_proj`, [experts, out, in] each, and multiplies tokens by
the matrices of the experts that they are sent to. Where a plan chooses one of them, `take_apart` makes both submodules
of those names, which are quantized as any layer: a row of an expert is a row. The layout is read from what
transformers' own decorator for such modules says of them; another (transposed, with biases, a forward of its own) has
no quantized form.
"""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from zsaq.quant.kinds import ExpertLinear, form_of


def fused_weights(module: nn.Module) -> tuple[str, ...]:
    """The names of a fused module's weights, in the order of their use; none for any other module."""
    says: Any = vars(module).get
    if says("is_transposed") is not False or says("has_bias") is not False or says("has_post_expert_norm", False):
        return ()
    names = ("gate_up_proj" if says("has_gate") else "up_proj", "down_proj")
    held = {name: parameter for name, parameter in module._parameters.items() if parameter is not None}
    known = hasattr(module, "_apply_gate") and hasattr(type(module).forward, "__wrapped__")
    return names if known and set(held) == set(names) and all(p.ndim == 3 for p in held.values()) else ()


def weighted(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that own parameters, by name; in the place of fused experts the layers that they would become."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if name and (fused := fused_weights(module)):
            found |= {f"{name}.{each}": ExpertLinear(module._parameters[each]) for each in fused}
        elif name and any(True for _ in module.parameters(recurse=False)):
            found[name] = module
    return found


def take_apart(model: nn.Module, chosen: Collection[str]) -> None:
    """Make layers of the weights of fused experts, in place, where any of them is `chosen` by its name."""
    for name, module in list(model.named_modules()):
        fused = fused_weights(module)
        if not any(f"{name}.{each}" in chosen for each in fused):
            continue
        for each in fused:
            weight = module._parameters.pop(each)
            module.add_module(each, ExpertLinear(weight))
        module.__class__ = form_of(Experts, type(module))
        vars(module)["_is_hf_initialized"] = True  # transformers would draw the weights that stood here


class Experts(nn.Module):
    """A fused module taken apart. Never constructed: see `take_apart`."""

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """States [tokens, d], the experts of each token and their weights [tokens, k] to states [tokens, d].

        Rows are sorted by expert, so that each layer rounds its inputs in one call, whoever is busy.
        """
        each: Any = self
        experts, order = top_k_index.flatten().sort(stable=True)
        counts = torch.bincount(experts, minlength=each.num_experts).tolist()
        rows = hidden_states[order // top_k_index.shape[1]]
        if each.has_gate:
            inner = each._apply_gate(each.gate_up_proj(rows, counts))
        else:
            inner = each.act_fn(each.up_proj(rows, counts))
        answers = each.down_proj(inner, counts) * top_k_weights.flatten()[order, None]
        return answers[order.argsort()].unflatten(0, top_k_index.shape).sum(1).to(hidden_states.dtype)
