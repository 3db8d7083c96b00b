"""The transformers adapter, the one place that knows its quantizer interface, and the loader on top of it.

Importing this module registers the method "zsaq": `from_pretrained` then reads what `save_pretrained` of a student
wrote, packed codes and scales in safetensors and a `quantization_config` in config.json:

    {"quant_method": "zsaq", "format_version": 1, "config": QuantConfig.to_dict(), "modules": [names],
     "tied": {module: table}, "left": {module: reason}}
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal, final

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, StrictDataclassError
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

from zsaq.header import AGAIN, check_header, decoys, expect, read_header
from zsaq.layers import check_static, quant_layers
from zsaq.manifest import MANIFEST, check, read_manifest
from zsaq.packed import PackedLayer, check_ranges, pack_plan, packed_layers, packed_weight, quantized
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
FOREIGN_KEYS: Final = ("auto_map", "custom_pipelines", "transformers_weights")
ADAPTERS: Final = ("adapter_config.json", "adapter_model.safetensors")


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
        expect(model)

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
    """What is saved: packed weights instead of latent ones, and the decoys of `zsaq.header`.

    Raises ValueError for a static range without values.
    """
    check_ranges(model)
    state, tied = model.state_dict(), plan_of(model).tied
    for name, layer in quant_layers(model):
        latent = f"{name}.weight_quantizer."
        state = {k: v for k, v in state.items() if k != f"{name}.weight" and not k.startswith(latent)}
        if name not in tied:
            state |= {f"{name}.{key}": value for key, value in packed_weight(layer).items()}
    layers = [name for name, _ in (*quant_layers(model), *packed_layers(model)) if name not in tied]
    return decoys(layers) | state


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


def config_of(source: str | Path, folder: str | Path, revision: str | None) -> PreTrainedConfig:
    """The config of what lies in `folder`. Raises ValueError for what zsaq has not saved, in the name of `source`."""
    none = f"{source} is no folder or Hub id of a saved student"
    try:
        raw, _ = PreTrainedConfig.get_config_dict(folder, revision=revision)
    except (OSError, ValueError) as error:
        raise ValueError(f"{none} ({error}); {AGAIN}") from error
    if raw and "quantization_config" not in raw:
        raise ValueError(f"{none}: it has no quantization_config, so it is a float model: load it with transformers")
    if raw:
        ZsaqConfig.from_dict(raw["quantization_config"])
    if foreign := [key for key in FOREIGN_KEYS if raw.get(key)]:
        raise ValueError(
            f"{source}: its config.json has {', '.join(foreign)}, which runs other code or reads other files than zsaq "
            "saves: take it out, or fetch the files again"
        )
    try:
        return AutoConfig.from_pretrained(folder, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, TypeError, AttributeError, KeyError, StrictDataclassError) as error:
        raise ValueError(f"{none} ({error}); {AGAIN}") from error


def load(
    source: str | Path,
    auto_class: Any = None,
    *,
    revision: str | None = None,
    dtype: torch.dtype | Literal["auto"] = "auto",
    device_map: Any = None,
) -> PreTrainedModel:
    """A saved student from a folder or the Hub, verified before and after, without remote code and without pickle.

    `auto_class`: a transformers Auto class; by default the one for the architecture that was saved. `revision`: of a
    Hub repository. `dtype`: "auto" is the one that was saved; scales stay float32, and a weight is rounded once, from
    scale times code. `device_map`: as in transformers. Where there is a manifest, every file has to be what it says.
    Raises ValueError, with the layer's or the file's name and what to do, for whatever does not fit: no or another
    `quantization_config`, an unknown format, remote code, missing, extra, wrongly shaped or typed tensors, scales or
    codes that no grid has, layers drawn at random.
    """
    folder = verified(source, revision)
    revision = None if folder != source else revision
    config = config_of(source, folder, revision)
    auto = auto_class_of(config) if auto_class is None else auto_class
    try:
        model, info = auto.from_pretrained(
            folder,
            revision=revision,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            dtype=dtype,
            device_map=device_map,
        )
    except OSError as error:
        raise ValueError(f"{source} has no readable model.safetensors ({error}); {AGAIN}") from error
    except torch.OutOfMemoryError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"{source}: no model can be made of its config.json ({type(error).__name__}: {error}); {AGAIN}"
        ) from error
    for what, remedy in {
        "missing_keys": "are missing and were drawn at random",
        "unexpected_keys": "belong to no layer",
        "mismatched_keys": "have another shape than the model",
        "error_msgs": "could not be read",
    }.items():
        if info[what]:
            raise ValueError(f"{source}: {sorted(map(str, info[what]))} {remedy}; {AGAIN}")
    if lost := set(plan_of(model).chosen) ^ {name for name, _ in quantized(model)}:
        raise ValueError(f"{source}: {lost} did not become packed layers; {AGAIN}")
    return model.eval()


def verified(source: str | Path, revision: str | None) -> str | Path:
    """Where the files lie that `source` means, found to be what the manifest says; `source` itself without manifest.

    From the Hub, what the manifest lists is fetched at the commit that holds the manifest. Raises ValueError.
    """
    folder = Path(source)
    if not folder.is_dir():
        try:
            manifest = Path(hf_hub_download(str(source), MANIFEST, revision=revision))
            folder = manifest.parent
            for name in read_manifest(manifest)["files"]:
                with suppress(EntryNotFoundError):  # `check` names it
                    hf_hub_download(str(source), name, revision=folder.name)
        except EntryNotFoundError:  # transformers fetches what it needs, and says what it misses
            return source
        except (OSError, HfHubHTTPError, HFValidationError) as error:
            raise ValueError(f"{source} is no folder or Hub id of a saved student ({error}); {AGAIN}") from error
    if os.path.lexists(folder / MANIFEST):
        check(folder)
    elif any((folder / name).exists() for name in ADAPTERS):
        raise ValueError(f"{folder} holds an adapter, which reads another model than the one saved here: take it away")
    return folder
