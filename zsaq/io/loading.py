"""A saved student comes back, whole and verified, or not at all."""

import inspect
from pathlib import Path
from typing import Any, Final, Literal

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
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

from zsaq.io.folder import bounded
from zsaq.io.record import record_of
from zsaq.io.verifying import Verified, verified
from zsaq.quant.guard import AGAIN
from zsaq.quant.packed import quantized
from zsaq.quant.plan import plan_of
from zsaq.quiet import quiet
from zsaq.sentence import Sentence

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
UNBUILDABLE: Final = (  # what transformers raises for values that it has not foreseen
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    StrictDataclassError,
    TypeError,
)


def auto_class_of(config: PreTrainedConfig) -> Any:
    """The Auto class that builds `config.architectures[0]`, or that class itself where it is one of transformers' own.

    Raises ValueError if transformers has none for such a config.
    """
    names: Any = config.architectures
    name = names[0] if isinstance(names, list) and names else None
    for auto in AUTO_CLASSES if name else ():
        kinds: Any = auto._model_mapping.get(type(config), ())  # type: ignore[attr-defined]
        if any(kind.__name__ == name for kind in (kinds if isinstance(kinds, tuple) else (kinds,))):
            return auto
    own = getattr(transformers, name, None) if isinstance(name, str) and name in dir(transformers) else None
    if isinstance(own, type) and issubclass(own, PreTrainedModel) and own.config_class is type(config):
        return own
    raise ValueError(
        f"architectures is {names!r}, and transformers has no such class for {type(config).__name__}: give auto_class"
    )


def class_of(config: PreTrainedConfig, source: str | Path) -> Any:
    """`auto_class_of`, and of a model of sentence-transformers the bare encoder, whatever head its config names: its
    embedding is pooled from states."""
    return auto_class_of(config) if Sentence.of(source) is None else AutoModel


def made_of(auto: Any, source: str | Path, **options: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A model by `auto.from_pretrained`, and what it tells of its weights. A bare encoder whose files hold no pooler,
    which no embedding reads, is made without one. Raises whatever transformers raises."""
    options |= {"trust_remote_code": False, "use_safetensors": True, "output_loading_info": True}
    model, info = auto.from_pretrained(source, **options)
    lost, makes = info["missing_keys"], inspect.signature(type(model).__init__).parameters
    if lost and all(name.startswith("pooler.") for name in lost) and "add_pooling_layer" in makes:
        model, info = auto.from_pretrained(source, add_pooling_layer=False, **options)
    return model, info


def config_of(folder: Path, source: str | Path) -> PreTrainedConfig:
    """What transformers makes of the config.json in `folder`. Raises ValueError, in the name of `source`."""
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, *UNBUILDABLE) as error:
        raise ValueError(f"{source} is no folder or Hub id of a saved student ({error}); {AGAIN}") from error


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
    `quantization_config`, an unknown format, remote code, a config that asks for more than the files hold, missing,
    extra, wrongly shaped or typed tensors, scales or codes that no grid has, numbers that are not finite, layers drawn
    at random.
    """
    found = verified(source, revision)  # what is downloaded shows its bars
    with quiet():
        return loaded(found, source, auto_class, dtype, device_map)


def loaded(
    found: Verified, source: str | Path, auto_class: Any, dtype: torch.dtype | Literal["auto"], device_map: Any
) -> PreTrainedModel:
    """`load`, of files that are here."""
    auto = auto_class_of(config_of(found.folder, source)) if auto_class is None else auto_class
    try:
        with bounded(found.header, source):
            model, info = made_of(auto, found.folder, dtype=dtype, device_map=device_map)
    except torch.OutOfMemoryError:
        raise
    except OSError as error:
        raise ValueError(f"{source} has files that cannot be read ({error}); {AGAIN}") from error
    except (ValueError, *UNBUILDABLE) as error:
        if isinstance(error, ValueError) and AGAIN in str(error):  # a layer's own
            raise
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
    # Not by setattr: a module would copy it by its own rules.
    vars(model)["zsaq"] = record_of(found.folder, found.fingerprint)
    return model.eval()
