"""What a class swap reaches: layers that compute as their classes say, from weights of their own.

Whatever computes otherwise would go on in floats behind the student's back: a wrapper around the model, a `forward` or
a hook of one instance, a weight that is made of other tensors, adapters beside a layer. It is refused by name, or,
where nothing is lost by it, taken off the copy.
"""

import copy
import inspect
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from zsaq.quant.config import QuantConfig
from zsaq.quant.heads import heads, token_table
from zsaq.quant.layers import SWAPS, Conv1D
from zsaq.quant.plan import Plan

MERGE: Final = (
    "carries adapters (LoRA and the like), which a student would not hold: merge first "
    "(peft.PeftModel.from_pretrained(float_model, adapter).merge_and_unload()), and give the merged model"
)
ALREADY: Final = "is quantized already by another library: give the float model"
INNER: Final = "is a wrapper around the model: give the model itself, its .module"
FOREIGN: Final = {  # whose modules compute otherwise -> what they are, and what to do
    **dict.fromkeys(("peft", "adapters", "loralib"), MERGE),
    **dict.fromkeys(
        (
            *("bitsandbytes", "torchao", "hqq", "auto_gptq", "gptqmodel", "awq", "optimum", "quanto", "eetq"),
            *("compressed_tensors", "auto_round", "transformer_engine", "torch.ao.nn.quantized", "torch.ao.nn.qat"),
            *("torch.ao.nn.intrinsic.quantized", "torch.ao.nn.intrinsic.qat", "transformers.integrations"),
        ),
        ALREADY,
    ),
    **dict.fromkeys(("torch.nn.parallel", "torch.optim.swa_utils", "deepspeed"), INNER),
    "torch._dynamo": "is compiled: give the model itself, its ._orig_mod, and compile the student instead",
    "torch.jit": "is a traced or scripted program, whose layers cannot be changed: give the model that it was made of",
    "torch.distributed": "is sharded: give the whole model on one device",
}  # fmt: skip

Model = TypeVar("Model", bound=nn.Module)


def has_adapters(model: nn.Module) -> bool:
    """Whether adapters stand beside any layer, or are what the model saves."""
    return bool(vars(model).get("_hf_peft_config_loaded")) or any(foreign(type(m)) is MERGE for m in model.modules())


def foreign(kind: type) -> str | None:
    """What is said of a class that is, or descends from, one of another library."""
    for parent in (parent for parent in kind.__mro__ if issubclass(parent, nn.Module)):
        for prefix, complaint in FOREIGN.items():
            if f"{parent.__module__}.".startswith(f"{prefix}."):
                return complaint
    return None


def check_own(teacher: nn.Module) -> None:
    """Raises ValueError for a model that another library has wrapped, sharded, quantized or given adapters, and for one
    whose tensors are not all here, on one device if accelerate dispatched it."""
    kinds: dict[type, str] = {}
    for name, module in teacher.named_modules():
        kinds.setdefault(type(module), name)
    for kind, name in kinds.items():
        if complaint := foreign(kind):
            raise ValueError(f"{name or 'the teacher'} ({kind.__name__}) {complaint}")
    if has_adapters(teacher):
        raise ValueError(f"the teacher {MERGE}")
    if isinstance(teacher, PreTrainedModel) and getattr(teacher.config, "quantization_config", None):
        raise ValueError(f"the teacher {ALREADY}")
    for name, tensor in (*teacher.named_parameters(), *teacher.named_buffers()):
        if tensor.is_meta:
            raise ValueError(
                f"{name} lies on the meta device, without values: a device_map has offloaded it; load the teacher "
                "whole on one device (no device_map, or {'': device})"
            )
    for name, parameter in teacher.named_parameters():
        if type(parameter) not in (nn.Parameter, Tensor):
            raise ValueError(f"{name} is a {type(parameter).__name__}, no plain tensor of floats; give the float model")
        if not parameter.is_floating_point() or parameter.dtype.itemsize < 2:
            kind = "8-bit floats" if parameter.is_floating_point() else "integers"
            raise ValueError(f"{name} holds {kind}: the teacher was loaded in 8 or 4 bits; give the float model")
    places = sorted({str(tensor.device) for tensor in (*teacher.parameters(), *teacher.buffers())})
    if len(places) > 1 and any("_hf_hook" in vars(module) for module in teacher.modules()):
        raise ValueError(
            f"a device_map spreads the teacher over {places}: load it on one device; what is saved can be spread by "
            "zsaq.load(..., device_map=...)"
        )


def copied(teacher: Model) -> Model:
    """A copy without what accelerate's dispatch has put on the instances: its methods would act on the teacher."""
    model = copy.deepcopy(teacher)
    for module in model.modules():
        own = vars(module)
        if "_hf_hook" in own:
            before = own.pop("_old_forward", None)
            for key in [k for k, value in own.items() if callable(value) and hasattr(nn.Module, k)]:
                del own[key]
            if getattr(before, "__func__", None) is not type(module).forward:
                own["forward"] = before
            del own["_hf_hook"]
    vars(model).pop("hf_device_map", None)
    return model


def check_weights(teacher: nn.Module, config: QuantConfig) -> None:
    """Raises ValueError for a layer whose weight is made of other tensors in every pass: by a hook, which no copy
    survives, or by a parametrization, if the layer would be quantized."""
    outside, table = heads(teacher), token_table(teacher)
    for name, module in teacher.named_modules():
        kind, complaint = next((parent for parent in type(module).__mro__ if parent in SWAPS), None), None
        own, ruled = config.of(name)
        aside = (module in outside and not (own and own.head)) or (kind is nn.Embedding and module is not table)
        if kind is None:
            continue
        if type(module) is kind and not isinstance(module._parameters.get("weight"), nn.Parameter):
            complaint = (
                "a hook (weight_norm, spectral_norm, pruning): make it a weight again (prune.remove and the like)"
            )
        elif parametrize.is_parametrized(module, "weight") and own is not None and (ruled or not aside):
            remove = "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight')"
            complaint = f"a parametrization: make it a weight again ({remove}), or leave the layer in floats by a rule"
        if complaint is not None:
            raise ValueError(f"{name}: its weight is computed from other tensors by {complaint}")


def check_forwards(model: nn.Module, plan: Plan) -> None:
    """Raises ValueError where a module of the copy `model` computes otherwise than its class: chosen layers have to be
    of their class alone, others may have a method of their own that knows no other module.

    Hooks of chosen layers are tried on an input: they may look on, and change nothing.
    """
    for name, module in model.named_modules():
        forward = vars(module).get("forward")
        if forward is not None and (name in plan.chosen or not is_own(forward, module)):
            raise ValueError(
                f"{name or 'the teacher'}: this {type(module).__name__} has a forward of its own "
                f"({getattr(forward, '__qualname__', type(forward).__name__)}), which would go on in floats: take it "
                "off (del layer.forward), or give a model that nobody has patched"
            )
        hooked = module._forward_pre_hooks or module._forward_hooks
        if name in plan.chosen and hooked and (wrong := meddling(module)):
            raise ValueError(
                f"{name}: a forward hook of this {type(module).__name__} {wrong}, and a saved student has no hooks: "
                "remove it (handle.remove()), or leave the layer in floats by a rule"
            )


def is_own(forward: Any, module: nn.Module) -> bool:
    """Whether it is a method of this very module, and holds no other module nor a method of one."""
    if getattr(forward, "__self__", None) is not module:
        return False
    functions = {forward.__func__, inspect.unwrap(forward.__func__)}
    held = [cell.cell_contents for function in functions for cell in getattr(function, "__closure__", None) or ()]
    return not any(isinstance(getattr(value, "__self__", value), nn.Module) for value in held)


def off_fast_path(model: nn.Module) -> None:
    """Have torch's own encoder layers call what they consist of: their fast path reads the weights past it."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0


@torch.no_grad()
def meddling(layer: nn.Module) -> str | None:
    """What the hooks of a layer do to its answer or weight, tried on an input; None if they only look on."""
    weight = layer._parameters.get("weight")
    x, call = sample(layer), type(layer).forward
    kept = None if weight is None else weight.clone()
    try:
        if weight is not None and kept is not None:
            weight.copy_(kept * 1.5 + 0.25)
        moved = None if weight is None else weight.clone()
        answer = layer(x.clone())
        if layer._parameters.get("weight") is not weight or not (
            weight is None or moved is None or torch.equal(weight, moved)
        ):
            return "writes into its weight"
        expected = call(layer, x.clone())
        return None if isinstance(answer, Tensor) and torch.equal(answer, expected) else "changes what it computes"
    except Exception as error:  # noqa: BLE001 (a stranger's hook may raise anything)
        return f"fails on an input of {list(x.shape)} ({type(error).__name__}: {error})"
    finally:
        if weight is not None and kept is not None:
            weight.copy_(kept)


def sample(layer: nn.Module) -> Tensor:
    """An input that the layer takes, drawn without a global seed."""
    rng = torch.Generator().manual_seed(0)
    if isinstance(layer, nn.Embedding):
        return torch.tensor([[0, layer.num_embeddings - 1]], device=layer.weight.device)
    shape: tuple[int, ...] = (2, 4)
    if isinstance(layer, nn.Linear | Conv1D):
        shape = (2, layer.in_features if isinstance(layer, nn.Linear) else layer.nx)
    if isinstance(layer, nn.Conv2d):
        sides = (d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True))
        shape = (1, layer.in_channels, *sides)
    like = next(layer.parameters(), torch.empty(0))
    return torch.randn(shape, generator=rng).to(like.device, like.dtype)
