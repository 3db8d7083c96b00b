"""That a quantized model is what is saved of it: whatever codes cannot hold is refused where it happens, or on save."""

from types import MethodType
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from zsaq.quant.attention import QuantAttention
from zsaq.quant.layers import QuantActivation, QuantLayer, quant_layers
from zsaq.quant.packed import PackedLayer, packed_layers
from zsaq.quant.plan import plan_of
from zsaq.quant.reach import has_adapters


def check_kept(model: nn.Module) -> None:
    """Raises ValueError, by the layer's name, for a student or a loaded model that would not come back as it is: with
    adapters beside its layers, with layers in the place of quantized ones, resized or written to."""
    plan = plan_of(model)
    if has_adapters(model):
        raise ValueError(
            "the model carries adapters (LoRA and the like), and codes do not hold them: save them alone, with the "
            "save_pretrained of the PeftModel or of transformers, beside the model that they were trained on; or merge "
            "them into the float model and quantize that"
        )
    modules = dict(model.named_modules())
    for name in plan.chosen:
        if not isinstance(modules.get(name), QuantLayer | PackedLayer | QuantActivation | QuantAttention):
            now = f"a {type(modules[name]).__name__} in floats" if name in modules else "gone"
            raise ValueError(f"{name} was quantized and is {now}: change the float model, and quantize it again")
    for name, layer in quant_layers(model):
        scale, rows = getattr(layer.weight_quantizer.ranges, "scale", None), layer.rows().shape[0]
        if scale is not None and len(scale) not in (1, rows):
            raise ValueError(
                f"{name} has {rows} rows and scales for {len(scale)}: resize the float model, and quantize it again"
            )
    for name, layer in packed_layers(model):
        try:
            layer.check()
            layer.check_kept()
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None


def keep_size(model: PreTrainedModel) -> None:
    """From now on `resize_token_embeddings`, of the model and its parts, refuses a table or head that is quantized."""
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            vars(part)["resize_token_embeddings"] = MethodType(resized, part)


def resized(
    model: PreTrainedModel, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, **options: Any
) -> Any:
    """transformers' own, where table and head are in floats. Raises ValueError where codes would have to be made."""
    for table in (model.get_input_embeddings(), model.get_output_embeddings()):
        if isinstance(table, QuantLayer | PackedLayer):
            rows = table.shape[0] if isinstance(table, PackedLayer) else table.rows().shape[0]
            size = rows if new_num_tokens is None else new_num_tokens
            size += -size % (pad_to_multiple_of or 1)
            if size != rows:
                raise ValueError(
                    f"the {type(table).__name__} of {rows} tokens is quantized and cannot get {size}: resize the float "
                    "model and quantize it again, or leave the table in floats by a rule"
                )
    return type(model).resize_token_embeddings(model, new_num_tokens, pad_to_multiple_of, **options)
