"""States as one file each, without pickle: a safetensors file whose tensor "tree" is JSON that points at the others."""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol, final

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from zsaq.atomic import atomic_file
from zsaq.quant.ranges import static_ranges
from zsaq.quant.sharded import of_part, part_of

TREE: Final = "tree"
PLAIN: Final = (str, bool, int, float, type(None))


class Stateful(Protocol):
    """What can be stopped and goes on: an optimizer, a scheduler, a stream, a log, `Tensors` of a module."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


@final
class Tensors:
    """Every parameter and buffer of a module, also those that no file holds, and what its static ranges have seen.

    They are written back in place, so that optimizers and ties go on with them.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def held(self) -> dict[str, Tensor]:
        tensors = (*self.module.named_parameters(), *self.module.named_buffers())
        return {name: part_of(tensor) for name, tensor in tensors}

    def state_dict(self) -> dict[str, Any]:
        seen = [(each.observer.updates, each.observer.lo, each.observer.hi) for each in static_ranges(self.module)]
        return {"tensors": {name: tensor.detach() for name, tensor in self.held().items()}, "seen": seen}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        held, saved = self.held(), state_dict["tensors"]
        kinds = [{name: (tensor.shape, tensor.dtype) for name, tensor in both.items()} for both in (held, saved)]
        if wrong := [name for name in {**held, **saved} if kinds[0].get(name) != kinds[1].get(name)]:
            raise ValueError(f"the module has other tensors than were kept: {wrong[:4]}")
        for name, tensor in held.items():
            tensor.copy_(saved[name])
        for each, (updates, lo, hi) in zip(static_ranges(self.module), state_dict["seen"], strict=True):
            each.observer.updates, each.observer.lo, each.observer.hi = updates, lo, hi
            each.observer.keep()
            each.checked = False


@final
class Parts:
    """The state of an optimizer of a sharded module: what this process has of it."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        state = self.optimizer.state_dict()
        held = {
            i: {k: part_of(v) if isinstance(v, Tensor) else v for k, v in s.items()} for i, s in state["state"].items()
        }
        return state | {"state": held}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        params = [p for group in self.optimizer.param_groups for p in group["params"]]
        held = {
            i: {k: of_part(v, params[i]) if isinstance(v, Tensor) else v for k, v in s.items()}
            for i, s in state_dict["state"].items()
        }
        self.optimizer.load_state_dict(state_dict | {"state": held})


@final
class Held:
    """A value that a stage made: numbers, texts, tensors, and lists and mappings of them."""

    def __init__(self, value: Any = None) -> None:
        self.value = value

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.value = state_dict["value"]


def stateful(part: Any) -> Stateful:
    """`part`; a module by its `Tensors`, an optimizer by its `Parts`. Raises ValueError for what has no state."""
    if isinstance(part, nn.Module):
        return Tensors(part)
    if hasattr(part, "param_groups"):
        return Parts(part)
    if not (hasattr(part, "state_dict") and hasattr(part, "load_state_dict")):
        raise ValueError(
            f"a {type(part).__name__} has no state_dict and load_state_dict, so that a run with it could not go on: "
            "give it both, or run without a checkpoint"
        )
    return part


def write_state(path: Path, state: Any) -> None:
    """`state`, of `PLAIN` values, numbers of numpy, tensors, lists, tuples and mappings, as the file `path`, whole or
    not at all.

    Raises OSError if it cannot be written and ValueError for anything else in it.
    """
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_encoded(state, tensors, {})).encode()
    tensors[TREE] = torch.frombuffer(bytearray(tree), dtype=torch.uint8)
    known: set[int] = set()
    for name, tensor in tensors.items():  # a file holds each tensor by itself: no views, no ties
        storage = tensor.untyped_storage()
        if storage.data_ptr() in known or storage.nbytes() != tensor.nbytes:
            tensors[name] = tensor.clone()
        known.add(storage.data_ptr())
    try:
        with atomic_file(path) as partial:
            save_file(tensors, partial)
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error


def read_state(path: Path) -> Any:
    """What `write_state` wrote, on the host. Raises ValueError for a file that cannot be read."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
        return _decoded(json.loads(tensors[TREE].numpy().tobytes()), tensors)
    except (SafetensorError, OSError, ArithmeticError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _encoded(value: Any, tensors: dict[str, Tensor], names: dict[Any, str]) -> Any:
    if isinstance(value, Tensor):
        place = value.untyped_storage().data_ptr(), value.storage_offset(), value.shape, value.stride(), value.dtype
        name = names.setdefault(place, str(len(tensors))) if value.numel() else str(len(tensors))
        if name not in tensors:  # what two parts hold is written once
            tensors[name] = value.detach().cpu().contiguous()
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"mapping": [[_encoded(part, tensors, names) for part in pair] for pair in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [_encoded(each, tensors, names) for each in value]}
    if isinstance(value, list):
        return [_encoded(each, tensors, names) for each in value]
    if type(value) in PLAIN:
        return value
    if isinstance(value, np.generic) and value.dtype.kind in "biuf" and value.itemsize <= 8:
        return {"numpy": [value.dtype.str, value.item()]}  # its type too: float32 goes on as float32
    raise ValueError(f"a {type(value).__name__} is in the state of a run; give numbers, texts and tensors")


def _decoded(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(tree, list):
        return [_decoded(each, tensors) for each in tree]
    if not isinstance(tree, dict):
        return tree
    ((kind, value),) = tree.items()
    match kind:
        case "tensor":
            return tensors[value]
        case "mapping":
            return {_decoded(key, tensors): _decoded(each, tensors) for key, each in value}
        case "tuple":
            return tuple(_decoded(each, tensors) for each in value)
        case "numpy":
            return np.dtype(value[0]).type(value[1])
    raise ValueError(f"{kind!r:.40} is no kind of value")


def random_state() -> dict[str, Any]:
    """Of every global stream: torch's on all devices, numpy's and python's."""
    numpy: Any = np.random.get_state(legacy=False)
    inner = numpy["state"]
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": {**numpy, "state": {**inner, "key": torch.from_numpy(inner["key"].astype(np.int64))}},
        "python": random.getstate(),
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    inner = state["numpy"]["state"]
    np.random.set_state({**state["numpy"], "state": {**inner, "key": inner["key"].numpy().astype(np.uint32)}})
    random.setstate(state["python"])
