"""Checkpoints of a student that transformers' Trainer writes: beside the codes they hold the latent weights, from which
training goes on bit for bit. Whoever loads such a folder as a model reads the codes, and passes the others over.

    {layer}.latent: rows [out, in * ...] of the latent weight; {layer}.weight_quantizer.*: what rounds it
"""

import re
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn
from transformers import PreTrainedModel

from zsaq.quant.guard import DECOY, DTYPE_NAMES, NOTE
from zsaq.quant.layers import quant_layers
from zsaq.quant.packed import PackedLayer, packed_layers
from zsaq.quant.plan import plan_of

STEP: Final = re.compile(r"checkpoint-\d+")  # what Trainer calls its folders


def is_step(folder: Any) -> bool:
    """Whether Trainer writes there in order to go on from it."""
    return STEP.fullmatch(Path(folder).name) is not None


def latents(student: PreTrainedModel) -> dict[str, Tensor]:
    """What training needs besides the codes; of tied layers the table's alone."""
    state, tied = {}, plan_of(student).tied
    for name, layer in quant_layers(student):
        if name not in tied:
            state[f"{name}.latent"] = layer.rows().detach().flatten(1).contiguous()
            state |= layer.weight_quantizer.state_dict(prefix=f"{name}.weight_quantizer.")
    return state


def restore(model: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """A hook of `load_state_dict`: what was saved of a student or of a loaded model, without the decoys, becomes what
    `model` calls its tensors. Raises ValueError for codes without latent weights, if it is a student."""
    saved, tied = dict(state), plan_of(model).tied
    state.pop(f"{prefix}{NOTE}", None)
    for name, layer in (*packed_layers(model), *quant_layers(model)):
        own, source = f"{prefix}{name}.", f"{prefix}{tied.get(name, name)}."
        if f"{source}codes" not in saved:
            continue
        for key in (key for key in saved if key.startswith((f"{own}latent", f"{own}weight_quantizer."))):
            del state[key]
        if is_decoy(saved.get(f"{own}weight")):
            del state[f"{own}weight"]
        if isinstance(layer, PackedLayer):
            continue
        rows = saved.get(f"{source}latent")
        if rows is None:
            raise ValueError(
                f"{name}: these are the codes of a saved model, which training cannot go on from: give a folder "
                "checkpoint-<step> that Trainer wrote of this student, or read the model by zsaq.load"
            )
        for part in ("codes", "scale", "unit", "zero"):
            state.pop(f"{own}{part}", None)
        state[f"{own}weight"] = rows.T if layer.columns_first else rows.view_as(layer.weight)
        rounding = {key: value for key, value in saved.items() if key.startswith(f"{source}weight_quantizer.")}
        state |= {f"{own}{key.removeprefix(source)}": value for key, value in rounding.items()}


def is_decoy(value: Any) -> bool:
    return isinstance(value, Tensor) and (DTYPE_NAMES.get(value.dtype), tuple(value.shape)) == DECOY
