"""From float layers to packed ones: empty forms for what a file holds, or rounded here and now."""

from functools import partial

import torch
from torch import Tensor, nn

from zsaq.quant.attention import rounds, swap_rounding
from zsaq.quant.codes import groups
from zsaq.quant.experts import take_apart
from zsaq.quant.grid import Grid
from zsaq.quant.kinds import form_of, kind_of
from zsaq.quant.layers import (
    QuantLayer,
    input_quantizer,
    quant_activations,
    quant_layers,
    weight_quantizer,
    weight_rows,
)
from zsaq.quant.packed import PACKS, PackedEmbedding, PackedExpertLinear, PackedLayer, packed_layers
from zsaq.quant.packing import pack, width
from zsaq.quant.plan import Plan
from zsaq.quant.quantizer import Quantizer
from zsaq.quant.reach import off_fast_path


def check_ranges(model: nn.Module) -> None:
    """Raises ValueError for a static range that nothing or nonsense has filled, by the name of its layer."""
    inputs = [(name, layer.input_quantizer) for name, layer in (*quant_layers(model), *packed_layers(model))]
    outputs = [(name, layer.output_quantizer) for name, layer in quant_activations(model)]
    for name, quantizer in (*inputs, *outputs):
        try:
            if quantizer is not None:
                quantizer.ranges.check()
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None


def pack_plan(model: nn.Module, plan: Plan) -> None:
    """Give the chosen float layers of a model, usually on the meta device, empty packed forms in place.

    Activations and attentions get the class that they have in students, with static ranges that have seen nothing.

    Raises ValueError for a module that the model lacks, that has no packed form, or whose group size does not fit.
    """
    off_fast_path(model)
    take_apart(model, plan.chosen)
    modules = dict(model.named_modules())
    for name in sorted(plan.chosen, key=lambda n: n in plan.tied):
        if name in modules and rounds(modules[name]):
            try:
                swap_rounding(modules[name], plan.chosen[name])
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            continue
        if name not in modules or kind_of(modules[name]) is None:
            kind = type(modules[name]).__name__ if name in modules else "nothing of that name"
            raise ValueError(
                f"{name}: {type(model).__name__} has {kind} there, not a layer that can hold packed weights"
            )
        layer, config = modules[name], plan.chosen[name]
        owner = modules[plan.tied[name]] if name in plan.tied else None
        grid = config.embedding if owner is not None or kind_of(layer) is nn.Embedding else config.weight
        if grid is None or not isinstance(owner, PackedEmbedding | None):
            raise ValueError(f"{name}: the configuration has no grid for it, or ties it to what is no table")
        try:
            become_packed(layer, grid, input_quantizer(layer, config), owner)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    vars(model)["zsaq_plan"] = plan


def become_packed(layer: nn.Module, grid: Grid, inputs: Quantizer | None, owner: PackedEmbedding | None) -> None:
    """Take a float layer's weight away and give it the class and the empty buffers of its packed form, in place.

    `owner`: the table whose codes it reads. Raises ValueError for a group size or a table that does not fit.
    """
    rows, experts = weight_rows(layer), len(layer.weight)  # type: ignore[arg-type]
    scales = groups(torch.empty(rows.shape, device="meta"), grid).shape[:-1]
    if owner is not None and tuple(rows.shape) != owner.shape:
        raise ValueError(f"{list(rows.shape)} is tied to a table of {list(owner.shape)}")
    kind = kind_of(layer)
    assert kind is not None
    layer.__class__ = form_of(PACKS[kind], type(layer))
    del layer._parameters["weight"]
    assert isinstance(layer, PackedLayer)
    layer.grid, layer.shape = grid, (rows.shape[0], rows.shape[1])
    layer.dtype, layer.input_quantizer = rows.dtype, inputs
    layer.release()
    if isinstance(layer, PackedExpertLinear):
        layer.experts = experts
    object.__setattr__(layer, "table", owner)  # not a submodule: the buffers belong to the table alone
    if owner is None:
        empty = partial(torch.empty, device=rows.device)
        layer.register_buffer("codes", empty(layer.shape[0], width(layer.shape[1], grid.bits), dtype=torch.uint8))
        layer.register_buffer("scale", empty(*scales, 1, dtype=grid.scaling.dtype))
        if grid.scaling.united:
            layer.register_buffer("unit", empty(1, dtype=torch.float32))
        if not grid.symmetric:
            layer.register_buffer("zero", empty(*scales, 1, dtype=torch.uint8))


def packed_weight(layer: QuantLayer) -> dict[str, Tensor]:
    """The buffers of a trained layer's packed form, by name, from its weights as they are now."""
    return packed_rows(layer.rows().flatten(1), layer.weight_quantizer)


@torch.no_grad()
def packed_rows(rows: Tensor, quantizer: Quantizer) -> dict[str, Tensor]:
    """The same from its rows [out, in * ...] and what rounds them."""
    grid, form = quantizer.grid, quantizer.grid.scaling
    codes, scale, zero = quantizer.codes(rows)
    unit = quantizer.ranges.unit_of(scale, grid)
    stored = form.encode(scale, unit).contiguous()
    assert form.name == "" or torch.equal(form.decode(stored, unit), scale.float()), "scales that no file holds"
    buffers = {"codes": pack(codes.short() - grid.low, grid.bits), "scale": stored}
    buffers |= {} if unit is None else {"unit": unit.clone()}
    return buffers if grid.symmetric else {**buffers, "zero": zero.to(torch.uint8).contiguous()}


def round_plan(model: nn.Module, plan: Plan) -> None:
    """Round the chosen float layers of a model to nearest and give them their packed forms in place.

    They compute what a student of `quantize_model` computes, without latent weights. Raises ValueError as `pack_plan`.
    """
    take_apart(model, plan.chosen)
    modules, packed = dict(model.named_modules()), {}
    for name, config in plan.chosen.items():
        if name in plan.tied or rounds(modules[name]):
            continue
        try:
            packed[name] = packed_rows(weight_rows(modules[name]), weight_quantizer(modules[name], config))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    pack_plan(model, plan)
    for name, buffers in packed.items():
        for key, value in buffers.items():
            modules[name].register_buffer(key, value)
