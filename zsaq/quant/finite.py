"""Which numbers of a model are none: nan and infinity in parameters, buffers, and what codes times scales become."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from zsaq.quant.packed import PackedLayer, packed_layers
from zsaq.quant.ranges import Static


def unfinite(model: nn.Module) -> Iterator[str]:
    """Names of parameters and buffers that are not finite. In a buffer that is not saved, as attention's masks are,
    -inf is a number; what has no values (the meta device) is passed over."""
    saved = model.state_dict().keys()
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if value.is_meta or not value.is_floating_point():
            continue
        value = value.detach().float() if value.dtype.itemsize == 1 else value.detach()  # torch asks no float8
        if not (value.isfinite() if name in saved else value < torch.inf).all():
            yield name


def check_teacher(teacher: nn.Module) -> None:
    """Raises ValueError, by name, for a float model with numbers that are none."""
    if broken := list(unfinite(teacher)):
        raise ValueError(
            f"{', '.join(broken[:4])}: not finite in the teacher ({len(broken)} such tensors): give a model that works"
        )


def check_loaded(model: nn.Module) -> None:
    """Raises ValueError, by name, for a loaded model with numbers that are none, or whose codes times scales are."""
    for name, layer in packed_layers(model):
        if layer.table is None and not reaches(layer).all():
            raise ValueError(
                f"{name}: scale times code goes beyond {layer.dtype}: the file is damaged, or give the dtype that was "
                "saved, or torch.float32"
            )
    for name, ranges in model.named_modules():
        if isinstance(ranges, Static) and not (ranges.scale * (ranges.grid.high - ranges.grid.low)).isfinite().all():
            raise ValueError(f"{name}: the static range goes beyond float32: the file is damaged; fetch it again")
    if broken := list(unfinite(model)):
        raise ValueError(
            f"{', '.join(broken[:4])}: not finite ({len(broken)} such tensors): the file is damaged, the student was "
            "lost in training, or the dtype is too narrow: fetch it again, make it again, or give dtype=torch.float32"
        )


def reaches(layer: PackedLayer) -> Tensor:
    """Whether the layer's weights are finite in its dtype: bool, of all at once where even the widest code is."""
    most = max(map(abs, layer.grid.values)) if layer.grid.symmetric else layer.grid.high - layer.grid.low
    if float(layer.scales().abs().max()) * most <= torch.finfo(layer.dtype).max:
        return torch.tensor(True)
    finite = layer.dequantized(layer.dtype).isfinite()
    layer.cache = None
    return finite
