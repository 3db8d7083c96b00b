"""A saved student as a compressed-tensors checkpoint, which stock transformers and vLLM read without this package.

Codes are copied, never computed from weights again, and nothing is written whose codes and weights the stock loader
does not give back. Weights, as they are stored:
- integer and ternary grids: the same codes in the same bits, packed in int32; 8-bit weights per channel with quantized
  8-bit inputs as int8, which takes the same space. Per tensor: the scale is repeated for every row.
- half-integer 2-bit levels: 2 * code + 1, one of -3, -1, 1, 3, with half the scale, which is exact. They take 4 bits: 3
  would hold them, but 4-bit words are what every kernel reads, and a width that divides 32 is packed alike by all
  versions of the format. So the file is as large as a 4-bit one; ternary and integer grids keep 2 bits.
- asymmetric grids: code - zero, with one bit more and no zero point, because the stock loader (transformers 5.23 with
  compressed-tensors 0.20) expects unpacked zero points where packed ones are stored, and refuses the file.
- token tables: int8 in models that do not generate, a byte a code, which the stock loader decompresses by default (not
  with `dequantize=True`, which takes one layout a file). It fails on a table in packed words: `_init_weights` asks each
  nn.Embedding for a `weight`. vLLM, for which language models are exported that generate, reads tables in packed words
  and in floats (vllm-project/vllm#44340), transformers in int8 and in floats: so those of generators are floats of the
  same values. So are tables that multiply what they look up, whose factor the stock loader then misses, and tables that
  a head shares, which is packed: the tie is undone.

Inputs, by the arithmetic of compressed-tensors in stock transformers:
- dynamic symmetric: its scale is absmax / ((2^bits - 1) / 2), for 8 bits absmax / 127.5, and it clamps to codes up to
  127 before it rounds; ours is absmax / 127. No argument of the format changes that. The scales differ by 0.4 percent
  at 8 bits, by 7 percent at 4. vLLM's int8 kernels scale by absmax / 127, as we do.
- dynamic asymmetric, and all static ranges: our rule, up to the order of two float operations; the loader holds static
  scales in the model's dtype, as it does those of weights, so that they are rounded to it.
- its strategy "token" means one scale for each index of the first two dimensions. Inputs [rows, d] (OPT's fc1 and fc2,
  BERT's pooler) would get one scale for the whole batch, so that answers depend on their neighbours. Layers that do not
  always get [batch, tokens, d] have the strategy "group" with one group of the whole width: one scale a token again.

vLLM, read in its sources and not run here. Symmetric weights per channel or in groups of 32, 64 or 128 (some kernels
128 only), columns in multiples of 128 and rows of 64: 4 and 8 bits with float inputs run on Marlin and its like; 8 bits
per channel with 8-bit inputs a token or static on its int8 kernels; 2 to 7 bits with dynamic symmetric 4- or 8-bit
inputs, and the other widths with float inputs, need its Humming kernels (vllm-project/vllm#46390, summer 2026; GPU of
compute capability 7.5), whose repacking then took 2, 4 and 8 bits only (vllm-project/compressed-tensors#719). It keeps
scales in the model's dtype.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from zsaq.atomic import atomic_folder
from zsaq.deploy.checkpoint import ONNX_INSTEAD, check_kinds, in_floats, unquantized, write_checkpoint
from zsaq.deploy.compressed.layout import Stored, store, store_table
from zsaq.deploy.foreign import in_one_line
from zsaq.io.inputs import random_inputs, text_limit
from zsaq.io.loading import auto_class_of, load
from zsaq.io.saving import weight_bytes
from zsaq.quant.kinds import Scaled
from zsaq.quant.packed import PackedEmbedding, PackedLinear, packed_layers
from zsaq.quant.plan import plan_of

TOKENS: Final = 5


def store_layers(model: Any) -> dict[str, Stored]:
    """The quantized linear layers in the format, and the token tables that keep their codes, by name.

    Raises ValueError for quantized modules that the stock loader would leave in floats without a word, and for grids
    that the format does not have.
    """
    check_kinds(
        model,
        PackedLinear | PackedEmbedding,
        "compressed-tensors in stock transformers quantizes nn.Linear only and leaves everything else in floats "
        "without a word",
    )
    sequences, shared, layers = sequence_layers(model), plan_of(model).tied.values(), {}
    for name, layer in packed_layers(model):
        try:
            if not isinstance(layer, PackedEmbedding):
                layers[name] = store(layer, name in sequences)
            elif not (model.can_generate() or name in shared or isinstance(layer, Scaled)):
                layers[name] = store_table(layer)
        except ValueError as error:
            if not isinstance(layer, PackedEmbedding):
                raise ValueError(f"{name}: {error}; {ONNX_INSTEAD}") from None
    if not any(isinstance(model.get_submodule(name), PackedLinear) for name in layers):
        raise ValueError(f"only token tables are quantized, and the stock loader reads none packed; {ONNX_INSTEAD}")
    return layers


@torch.no_grad()
def sequence_layers(model: Any) -> set[str]:
    """The layers whose inputs are [batch, tokens, d], as a pass over a few made-up token ids shows; none in vision."""
    if model.main_input_name != "input_ids":
        return set()
    ranks: dict[str, set[int]] = {}

    def see(name: str, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        ranks.setdefault(name, set()).add(args[0].ndim)

    hooks = [layer.register_forward_pre_hook(partial(see, name)) for name, layer in packed_layers(model)]
    inputs = random_inputs(model, (1, min(TOKENS, text_limit(model))))
    with in_one_line(model, "does not run on a few tokens", ONNX_INSTEAD):
        model.base_model(**inputs)
    for hook in hooks:
        hook.remove()
    return {name for name, seen in ranks.items() if seen == {3}}


def quantization_config(model: nn.Module, layers: dict[str, Stored]) -> dict[str, Any]:
    """The `quantization_config` of config.json: a config group for each scheme, and the linear layers left in floats.

    A single scheme of linear layers has the target "Linear", which also finds modules that a runtime has renamed or
    fused; several, and tables, are targeted by names.
    """
    import compressed_tensors

    targets: dict[str, list[str]] = {}
    tables: dict[str, list[str]] = {}
    for name, layer in layers.items():
        found = tables if isinstance(model.get_submodule(name), PackedEmbedding) else targets
        found.setdefault(json.dumps(layer.scheme), []).append(name)
    names = [["Linear"]] if len(targets) == 1 else targets.values()
    groups = [
        {**json.loads(key), "output_activations": None, "targets": target}
        for key, target in [*zip(targets, names, strict=True), *tables.items()]
    ]
    layouts = {group["format"] for group in groups}
    return {
        "quant_method": "compressed-tensors",
        "version": compressed_tensors.__version__,
        "format": layouts.pop() if len(layouts) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": {f"group_{i}": group for i, group in enumerate(groups)},
        "ignore": [n for n, module in model.named_modules() if isinstance(module, nn.Linear) and n not in layers],
    }


def check_written(folder: Path, model: Any, layers: dict[str, Stored]) -> None:
    """Load `folder` as stock transformers does and compare. Raises ValueError unless all of it comes back."""
    from compressed_tensors.compressors import decompress_module

    with in_one_line(model, "is not loaded by stock transformers from this export", ONNX_INSTEAD):
        stock, info = auto_class_of(model.config).from_pretrained(
            folder, dtype=model.dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    if wrong := {what: sorted(map(str, names)) for what, names in info.items() if names}:
        raise ValueError(f"stock transformers does not load the export whole: {wrong}; {ONNX_INSTEAD}")
    state, modules = stock.state_dict(), dict(stock.named_modules())
    packed = {key.removesuffix(".weight_scale") for key in state if key.endswith(".weight_scale")}
    if lost := packed ^ set(layers):
        raise ValueError(f"stock transformers takes {sorted(lost)} for what they are not; {ONNX_INSTEAD}")
    for name, layer in packed_layers(model):
        if name in layers:
            for key, value in layers[name].tensors.items():
                assert torch.equal(state[f"{name}.{key}"], value), f"{name}.{key} does not come back"
            decompress_module(modules[name])
        if name not in layers or layer.dtype == torch.float32:  # else scales are rounded, and the tensors were compared
            same = torch.equal(modules[name].get_parameter("weight"), layer.weight)
            assert same, f"{name}: the stock loader reads other weights"
        layer.release()


def to_compressed(source: str | Path, target: str | Path) -> dict[str, Any]:
    """Write the student saved in the folder `source` as the compressed-tensors checkpoint `target`.

    Returns facts: `format`, `layout`, `layers` and `tables` (how many are stored as integers), `bits` (stored width of
    layers -> how many), `bytes` of the weight files, `student_bytes` of the student's, `ignored` linear layers, floats
    in the student too, and `changed`: in what the export differs from the student, in words. The folder appears whole
    or not at all.

    Raises ValueError if the target exists, compressed-tensors is missing, the source is no saved student, or any of
    its quantized modules or grids has no form in the format: Conv1D of GPT-2, convolutions, quantized activations,
    half-integer or ternary inputs, asymmetric 8-bit weights.
    """
    source, target = Path(source), Path(target)
    try:
        import compressed_tensors  # noqa: F401
    except ImportError as error:
        raise ValueError(f"compressed-tensors is not installed ({error}): pip install 'zsaq[export]'") from error
    if target.exists():
        raise ValueError(f"{target} exists already; name a folder that does not")
    if not (source / "config.json").is_file():
        raise ValueError(f"{source} is no folder with a saved student: it has no config.json")
    model = load(source)
    layers, tied = store_layers(model), plan_of(model).tied
    tables = {n: layer for n, layer in packed_layers(model) if isinstance(layer, PackedEmbedding)}
    floats = {name: layer for name, layer in tables.items() if name not in layers}
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = quantization_config(model, layers)
    state = unquantized(model)
    if tied:  # what transformers tied must now stand in the file twice
        config["tie_word_embeddings"] = False
        state = {key: value.clone() for key, value in state.items()}
    state |= {f"{name}.weight": layer.weight for name, layer in floats.items()}
    state |= {f"{name}.{key}": value for name, layer in layers.items() for key, value in layer.tensors.items()}
    with atomic_folder(target) as folder:
        write_checkpoint(source, folder, state, config)
        check_written(folder, model, layers)
        size = weight_bytes(folder)
    bits = [layer.scheme["weights"]["num_bits"] for name, layer in layers.items() if name not in tables]
    changed = dict.fromkeys(change for layer in layers.values() for change in layer.changed)
    tables_changed = [in_floats(name, layer) for name, layer in floats.items()]
    tables_changed += [
        f"{name}: the {layer.grid.bits}-bit codes of the token table take a byte each"
        for name, layer in tables.items()
        if name in layers and layer.grid.bits < 8
    ]
    tables_changed += [
        f"{name}: a copy of the codes of {table}, which the student shares" for name, table in tied.items()
    ]
    return {
        "format": "compressed-tensors",
        "layout": config["quantization_config"]["format"],
        "layers": len(layers.keys() - tables.keys()),
        "tables": len(layers.keys() & tables.keys()),
        "bits": {width: bits.count(width) for width in sorted(set(bits))},
        "bytes": size,
        "student_bytes": weight_bytes(source),
        "ignored": config["quantization_config"]["ignore"],
        "changed": [*changed, *tables_changed],
    }
