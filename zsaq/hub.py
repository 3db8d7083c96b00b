"""Saving and loading through transformers, the one place that knows its quantizer interface.

Importing this module registers the method "zsaq": `from_pretrained` then reads what `save_pretrained` of a student
wrote, packed codes and scales in safetensors and a `quantization_config` in config.json:

    {"quant_method": "zsaq", "format_version": 1, "config": QuantConfig.to_dict(), "modules": [names],
     "tied": {module: table}, "left": {module: reason}}
"""

from pathlib import Path
from typing import Any, Final, final

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from zsaq.layers import check_static, quant_layers
from zsaq.packed import PackedLayer, check_ranges, pack_plan, packed_weight, quantized
from zsaq.plan import Plan, plan_of

METHOD: Final = "zsaq"
FORMAT_VERSION: Final = 1
AUTO_CLASSES: Final = (
    AutoModelForSequenceClassification,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForTokenClassification,
    AutoModelForQuestionAnswering,
    AutoModelForMultipleChoice,
    AutoModelForImageClassification,
    AutoModel,
)
FLOATS: Final = ("F64", "F32", "F16", "BF16")
HEADER_NAMES: Final = {torch.uint8: "U8", torch.int64: "I64", torch.float32: "F32"}
AGAIN: Final = "save the student again with save_pretrained, or fetch the files again"


@final
class ZsaqConfig(QuantizationConfigMixin):
    """The `quantization_config` of a saved model: its plan and the version of the format."""

    quant_method = METHOD  # type: ignore[assignment]

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    @classmethod
    def from_dict(cls, config_dict: Any, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """Raises ValueError for another method or version, unknown keys and values that cannot be."""
        if not isinstance(config_dict, dict) or config_dict.get("quant_method") != METHOD:
            raise ValueError(f"quantization_config is {config_dict!r:.200}; zsaq reads quant_method {METHOD!r}")
        version = config_dict.get("format_version")
        if type(version) is not int or version != FORMAT_VERSION:
            raise ValueError(
                f"format_version is {version!r}, this zsaq reads {FORMAT_VERSION}; upgrade zsaq or save again"
            )
        rest = {key: value for key, value in config_dict.items() if key not in ("quant_method", "format_version")}
        config = cls(Plan.from_dict(rest))
        return (config, kwargs) if return_unused_kwargs else config

    def to_dict(self) -> dict[str, Any]:
        return {"quant_method": METHOD, "format_version": FORMAT_VERSION, **self.plan.to_dict()}


@final
class ZsaqQuantizer(HfQuantizer):
    requires_calibration = True  # load only: students come from quantize_model
    quantization_config: ZsaqConfig

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[dict[str, Tensor], dict[str, str]]:
        return packed_state(model), {}

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> None:
        untie(model, self.quantization_config.plan)
        pack_plan(model, self.quantization_config.plan)
        for _, layer in quantized(model):
            layer._is_hf_initialized = True  # type: ignore[assignment]
        if checkpoint_files is not None:
            check_header(model, read_header(checkpoint_files))

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        vars(model)["_weight_conversions"] = []
        for name, layer in quantized(model):
            try:
                if isinstance(layer, PackedLayer):
                    layer.cache = None
                    layer.check()
                else:
                    check_static(layer.output_quantizer, "output")
            except ValueError as error:
                raise ValueError(f"{name}: {error}; {AGAIN}") from None


register_quantization_config(METHOD)(ZsaqConfig)
register_quantizer(METHOD)(ZsaqQuantizer)


def attach(student: PreTrainedModel) -> None:
    """From now on `student.save_pretrained(folder)` writes packed integers, of the weights that it then has."""
    config = ZsaqConfig(plan_of(student))
    student.config.quantization_config = config
    # Tensors are called as their modules are, not by the names of older versions.
    vars(student).update(hf_quantizer=ZsaqQuantizer(config), _weight_conversions=[])


def packed_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """What is saved: packed weights instead of latent ones. Raises ValueError for a static range without values."""
    check_ranges(model)
    state, tied = model.state_dict(), plan_of(model).tied
    for name, layer in quant_layers(model):
        latent = f"{name}.weight_quantizer."
        state = {k: v for k, v in state.items() if k != f"{name}.weight" and not k.startswith(latent)}
        if name not in tied:
            state |= {f"{name}.{key}": value for key, value in packed_weight(layer).items()}
    return state


def untie(model: PreTrainedModel, plan: Plan) -> None:
    """Take what will be packed out of transformers' ties of parameters: it has none, and is tied by its codes."""
    packed = {f"{name}.weight" for name in plan.chosen}
    for prefix, part in model.named_modules():
        if isinstance(part, PreTrainedModel):
            start = f"{prefix}." if prefix else ""
            ties = part.get_expanded_tied_weights_keys()
            kept = {k: v for k, v in ties.items() if not {start + k, start + v} & packed}
            if kept != ties:
                part._tied_weights_keys = kept
            every = part.all_tied_weights_keys.items()
            part.all_tied_weights_keys = {k: v for k, v in every if not {start + k, start + v} & packed}


def read_header(files: list[str]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> dtype as safetensors calls it, and shape. No tensor is read. Raises ValueError for any other file."""
    header = {}
    for file in files:
        if Path(file).suffix != ".safetensors":
            raise ValueError(f"{file} is not a safetensors file; zsaq reads nothing else: {AGAIN}")
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (not a dict)
                    part = tensors.get_slice(name)
                    header[name] = (part.get_dtype(), tuple(part.get_shape()))
        except SafetensorError as error:
            raise ValueError(f"{file} is damaged ({error}); {AGAIN}") from error
    return header


def check_header(model: PreTrainedModel, header: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    """Raises ValueError for missing, foreign, wrongly shaped or wrongly typed tensors, before any of them is read."""
    state = model.state_dict()
    for name, layer in quantized(model):
        buffers = {f"{name}.{key}": value for key, value in layer.named_buffers()}
        for key, value in buffers.items():
            wanted = HEADER_NAMES[value.dtype], tuple(value.shape)
            if key not in header:
                raise ValueError(f"{name}: the tensor {key} is missing; {AGAIN}")
            if header[key] != wanted:
                raise ValueError(f"{name}: {key} is {header[key]}, its plan asks for {wanted}; {AGAIN}")
        known = {*buffers, f"{name}.bias"}
        if extra := [key for key in header if key.startswith(f"{name}.") and key not in known]:
            raise ValueError(f"{name}: its plan knows no tensors {extra}; {AGAIN}")
    for key, (dtype, shape) in header.items():
        if key in state and ((dtype in FLOATS) != state[key].is_floating_point() or shape != tuple(state[key].shape)):
            wanted = state[key].dtype, tuple(state[key].shape)
            raise ValueError(
                f"{key.rpartition('.')[0]}: {key} is {(dtype, shape)}, the model asks for {wanted}; {AGAIN}"
            )


def auto_class_of(config: PreTrainedConfig) -> Any:
    """The Auto class that builds `config.architectures[0]`. Raises ValueError if transformers has none."""
    names: Any = config.architectures
    names = names if isinstance(names, list) else None
    for auto in AUTO_CLASSES if names else ():
        kinds: Any = auto._model_mapping.get(type(config), ())  # type: ignore[attr-defined]
        if any(kind.__name__ == names[0] for kind in (kinds if isinstance(kinds, tuple) else (kinds,))):
            return auto
    known = ", ".join(auto.__name__ for auto in AUTO_CLASSES)
    raise ValueError(
        f"architectures is {names!r}, which none of {known} builds for {type(config).__name__}: give auto_class"
    )


def load(source: str | Path, auto_class: Any = None) -> PreTrainedModel:
    """A saved student from a folder or the Hub, verified before and after, without remote code and without pickle.

    `auto_class`: a transformers Auto class; by default the one for the architecture that was saved. Raises ValueError,
    with the layer's name and what to do, for whatever does not fit: no or another `quantization_config`, an unknown
    format, missing, extra, wrongly shaped or typed tensors, scales or codes that no grid has, layers drawn at random.
    """
    try:
        raw, _ = PreTrainedConfig.get_config_dict(source)
        if raw and "quantization_config" not in raw:
            raise ValueError("it has no quantization_config, so it is a float model: load it with transformers")
        if raw:
            ZsaqConfig.from_dict(raw["quantization_config"])
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, StrictDataclassError) as error:
        raise ValueError(f"{source} is no folder or Hub id of a saved student: {error}") from error
    auto = auto_class_of(config) if auto_class is None else auto_class
    try:
        model, info = auto.from_pretrained(
            source, trust_remote_code=False, use_safetensors=True, output_loading_info=True
        )
    except OSError as error:
        raise ValueError(f"{source} has no readable model.safetensors ({error}); {AGAIN}") from error
    for what, remedy in {
        "missing_keys": "are missing and were drawn at random",
        "unexpected_keys": "belong to no layer",
        "error_msgs": "could not be read",
    }.items():
        if info[what]:
            raise ValueError(f"{source}: {sorted(map(str, info[what]))} {remedy}; {AGAIN}")
    if lost := set(plan_of(model).chosen) ^ {name for name, _ in quantized(model)}:
        raise ValueError(f"{source}: {lost} did not become packed layers; {AGAIN}")
    return model.eval()
