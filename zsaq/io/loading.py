"""A saved student comes back, whole and verified, or not at all."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, StrictDataclassError
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

from zsaq.foreign import UNMADE
from zsaq.io.checksums import MANIFEST, check_manifest, identity, read_manifest
from zsaq.io.record import record_of
from zsaq.quant.adapter import ZsaqConfig
from zsaq.quant.guard import AGAIN
from zsaq.quant.packed import quantized
from zsaq.quant.plan import plan_of
from zsaq.run import RESULTS

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


def saved_config(source: str | Path, folder: str | Path, revision: str | None) -> PreTrainedConfig:
    """The config of what lies in `folder`. Raises ValueError for what zsaq has not saved, in the name of `source`."""
    none = f"{source} is no folder or Hub id of a saved student"
    try:
        raw, _ = PreTrainedConfig.get_config_dict(folder, revision=revision)
    except (OSError, ValueError, *UNMADE) as error:
        raise ValueError(f"{none} ({error}); {AGAIN}") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{none}: its config.json holds {raw!r:.100} and no object; {AGAIN}")
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
    The model's `zsaq` is a `Record` with the results that lie beside it, if they belong to it and can be read.
    Raises ValueError, with the layer's or the file's name and what to do, for whatever does not fit: no or another
    `quantization_config`, an unknown format, remote code, missing, extra, wrongly shaped or typed tensors, scales or
    codes that no grid has, layers drawn at random.
    """
    folder, fingerprint = verified(source, revision)
    revision = None if folder != source else revision
    config = saved_config(source, folder, revision)
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
    vars(model)["zsaq"] = record_of(
        Path(folder), fingerprint
    )  # not by setattr: a module would copy it by its own rules
    return model.eval()


def verified(source: str | Path, revision: str | None) -> tuple[str | Path, str | None]:
    """Where the files lie that `source` means, being what the manifest says, and what the manifest calls the model.

    Without a manifest it is `source` itself, and None. From the Hub, what the manifest lists is fetched at the commit
    that holds the manifest, and the results beside it. Raises ValueError.
    """
    folder = Path(source)
    if not folder.is_dir():
        try:
            manifest = Path(hf_hub_download(str(source), MANIFEST, revision=revision))
            folder = manifest.parent
            for name in (*read_manifest(manifest)["files"], RESULTS):
                with suppress(EntryNotFoundError):  # `check_manifest` names it
                    hf_hub_download(str(source), name, revision=folder.name)
        except EntryNotFoundError:  # transformers fetches what it needs, and says what it misses
            return source, None
        except (OSError, HfHubHTTPError, HFValidationError) as error:
            raise ValueError(f"{source} is no folder or Hub id of a saved student ({error}); {AGAIN}") from error
    if os.path.lexists(folder / MANIFEST):
        return folder, identity(check_manifest(folder)["files"])
    if any((folder / name).exists() for name in ADAPTERS):
        raise ValueError(f"{folder} holds an adapter, which reads another model than the one saved here: take it away")
    return folder, None
