"""Tensors of which each process holds a part (FSDP2's DTensors), made whole where whole ones are needed. Others pass as
they are. All processes have to make the same ones whole, in the same order."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor, zeros


def is_sharded(module: nn.Module) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def whole(tensor: Tensor) -> Tensor:
    """All of it; a gradient goes back to the parts, as the sum over the processes."""
    if not isinstance(tensor, DTensor):
        return tensor
    return tensor.full_tensor(grad_placements=[Partial()] * tensor.device_mesh.ndim)


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole `tensor`, known to each process, as it is, or in parts if `other` is."""
    if not isinstance(other, DTensor):
        return tensor
    return distribute_tensor(tensor, other.device_mesh, other.placements, src_data_rank=None)


def part_of(tensor: Tensor) -> Tensor:
    """What this process has of it, which it shares memory with."""
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor


def of_part(part: Tensor, other: Tensor) -> Tensor:
    """The tensor of which `part` is what this process has, if it is to `other` as its own part."""
    if not isinstance(other, DTensor) or part.shape != other.to_local().shape:
        return part
    placed = part.to(other.device), other.device_mesh, other.placements
    return DTensor.from_local(*placed, run_check=False, shape=other.shape, stride=other.stride())


def zeros_like_rows(weight: Tensor, rows: Tensor) -> Tensor:
    """Zeros in the shape and dtype of `rows`, in parts if `weight` is; otherwise of stride 0, which takes no memory."""
    if isinstance(weight, DTensor):
        mesh = weight.device_mesh
        return zeros(rows.shape, dtype=rows.dtype, device_mesh=mesh, placements=[Shard(0)] * mesh.ndim)
    return torch.zeros((), dtype=rows.dtype, device=rows.device).expand(rows.shape)


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Inside, the parameters of the module and of what it holds are whole; they are not to be changed."""
    held = [
        (part, name, parameter)
        for part in module.modules()
        for name, parameter in part._parameters.items()
        if isinstance(parameter, DTensor)
    ]
    try:
        with torch.no_grad():
            for part, name, parameter in held:
                part._parameters[name] = nn.Parameter(parameter.full_tensor(), parameter.requires_grad)
        yield
    finally:
        for part, name, parameter in held:
            part._parameters[name] = parameter


def keeps(module: nn.Module) -> bool:
    """Whether this process keeps what is gathered of the module: of a sharded one the main process alone does."""
    return not is_sharded(module) or distributed.get_rank() == 0


def wholes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a sharded module, whole on the main process, one after the other; nothing on the others."""
    known: dict[int, Tensor | None] = {}
    main = distributed.get_rank() == 0
    for tensor in state.values():
        if id(tensor) not in known:  # ends of a tie stay one tensor
            all_of_it = whole(tensor.detach())
            known[id(tensor)] = all_of_it if main else None
    return {name: found for name, tensor in state.items() if (found := known[id(tensor)]) is not None}


def alike(tensors: list[Tensor]) -> list[list[Tensor]]:
    """Those that can be handed to one operation on lists: whole ones, and those in parts by their meshes."""
    groups: dict[object, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.device_mesh if isinstance(tensor, DTensor) else None, []).append(tensor)
    return list(groups.values())


def total_norm(tensors: list[Tensor]) -> Tensor:
    """The 2-norm of all of them together, the same on each process where they are in parts."""
    norms = [whole(nn.utils.get_total_norm(group)) for group in alike(tensors)]
    if len(norms) < 2:
        return norms[0] if norms else torch.zeros(())
    return torch.linalg.vector_norm(torch.stack(norms))
