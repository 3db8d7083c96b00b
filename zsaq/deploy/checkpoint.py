"""What exports share that are checkpoints of transformers: their files, what they refuse, and what grows in them."""

import json
import shutil
from pathlib import Path
from typing import Any, Final

from huggingface_hub import save_torch_state_dict
from torch import Tensor, nn

from zsaq.quant.layers import quant_activations
from zsaq.quant.packed import PackedLayer, packed_layers

ONNX_INSTEAD: Final = "export it to ONNX instead: zsaq export DIR --to onnx"
COPIED: Final = (
    *("tokenizer*", "vocab*", "merges.txt", "*.model", "special_tokens_map.json", "added_tokens.json"),
    *("preprocessor_config.json", "processor_config.json", "chat_template*", "generation_config.json"),
)


def refused(why: str) -> ValueError:
    """The error for a model that a format does not have: what stands in the way, and what to do instead."""
    return ValueError(f"{why}; {ONNX_INSTEAD}")


def check_kinds(model: nn.Module, kinds: Any, why: str) -> None:
    """Raises ValueError, which says `why`, for quantized modules of other kinds than these, by name."""
    other_layers = [(n, m) for n, m in packed_layers(model) if not isinstance(m, kinds)]
    if others := [f"{n} ({type(m).__name__})" for n, m in (*other_layers, *quant_activations(model))]:
        shown = ", ".join(others[:6]) + (f" and {len(others) - 6} more" if len(others) > 6 else "")
        raise refused(f"{why}; this student also quantizes {shown}")


def unquantized(model: nn.Module) -> dict[str, Tensor]:
    """The state dict without what stands for weights in packed layers."""
    buffers = {f"{name}.{key}" for name, layer in packed_layers(model) for key, _ in layer.named_buffers()}
    return {key: value for key, value in model.state_dict().items() if key not in buffers}  # type: ignore[union-attr]


def write_checkpoint(source: Path, folder: Path, state: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Weights and config into the new `folder`, tokenizer and the like out of the student's `source`."""
    folder.mkdir()
    save_torch_state_dict(state, folder)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    for file in {file for pattern in COPIED for file in source.glob(pattern) if file.is_file()}:
        shutil.copyfile(file, folder / file.name)


def in_floats(name: str, layer: PackedLayer) -> str:
    """Of a layer whose values go into a file as floats: by how much it grows there."""
    whole, packed = layer.weight.nbytes, sum(buffer.nbytes for buffer in layer.buffers())
    sizes = f"{whole / 1e6:.3g} MB where the student has {packed / 1e6:.3g}"
    return f"{name}: stored in floats, its values the same: {sizes}"
