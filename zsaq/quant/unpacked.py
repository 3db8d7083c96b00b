"""The weight of a packed layer, unpacked when it is wanted, and what becomes of what others write into it.

`weight` looks like a float layer's, so other libraries write there, as peft does where it merges an adapter. The layer
then computes with what was written, whatever it is cast or moved to, and `check_kept` tells that no code holds it.
"""

from typing import Final

import torch
from torch import Tensor, nn

from zsaq.quant.codes import dequantize
from zsaq.quant.grid import Grid
from zsaq.quant.packing import unpack

WRITTEN: Final = (
    "the weight of a loaded model is read from its codes, which cannot hold what is written into it (a merged adapter, "
    "an edited or resized weight): write into, or merge into, the float model and quantize that again"
)


def edited(before: list[tuple[int, int]], now: list[tuple[int, int]]) -> bool:
    """Whether the same tensors have been written to."""
    return [key for key, _ in before] == [key for key, _ in now] and before != now


class Unpacked(nn.Module):
    """Codes and scales, and the weight that they stand for. Never constructed; the end of a tie reads its table's."""

    codes: Tensor
    scale: Tensor
    zero: Tensor
    grid: Grid
    shape: tuple[int, int]  # of the codes: output rows, input columns
    table: "Unpacked | None"
    dtype: torch.dtype  # of the model around it
    cache: Tensor | None  # the weight as the forward pass has last used it
    shown: Tensor | None  # and as it was handed out
    made_of: list[tuple[int, int]]  # the codes and scale that these were unpacked from

    def zeros(self) -> Tensor | float:
        return self.grid.zero if self.grid.symmetric else self.zero

    def scales(self, rows: Tensor | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """The scales [out or 1, ..., 1] float32, of some rows if their indices are given; float64 for a weight that is,
        since a student's is the product in float64."""
        stored = self.scale if rows is None else self.scale[rows]
        scales = self.grid.scaling.decode(stored, self._buffers.get("unit"))
        return scales.to(torch.promote_types(scales.dtype, dtype))

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """The weight, rows first and flat [out, in * ...], unpacked once for each device and dtype, then kept."""
        if self.table is not None:
            return self.table.dequantized(dtype)
        self.follow()
        if self.shown is not None and self.shown.dtype == dtype:
            return self.flat(self.shown)
        if self.cache is None or (self.cache.dtype, self.cache.device) != (dtype, self.codes.device):
            written = self.shown is not None and self.written()
            self.cache = self.flat(self.shown).to(dtype) if written else self.unpacked(dtype)  # type: ignore[arg-type]
            self.made_of = self.stamps()
        return self.cache

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        """The weight as its codes say it, rows first and flat."""
        # An inference tensor would be of no use to a later pass with gradients.
        with torch.inference_mode(False), torch.no_grad():
            codes = unpack(self.codes, self.grid.bits, self.shape).short() + self.grid.low
            return dequantize(codes, self.scales(dtype=dtype), self.zeros(), self.grid).to(dtype)

    @property
    def weight(self) -> Tensor:
        """The weight in the model's dtype and the float layer's layout, always the same tensor.

        What is written there is computed with from then on, as peft does where it merges; no code holds it, so `save`
        refuses it (`check_kept`). Raises ValueError if another is assigned.
        """
        if self.table is not None:
            return self.table.weight
        self.follow()
        if self.shown is None:
            shown = self.laid_out(self.dequantized(self.dtype))
            shown._is_hf_initialized = True  # type: ignore[attr-defined]  # or transformers would draw it anew
            self.shown = shown
        self.cache = None
        return self.shown

    @weight.setter
    def weight(self, value: object) -> None:
        raise ValueError(WRITTEN)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        if name == "weight":
            raise ValueError(WRITTEN)
        super().register_parameter(name, param)

    def laid_out(self, rows: Tensor) -> Tensor:
        """Rows [out, in * ...] in the float layer's layout."""
        return rows

    def flat(self, weight: Tensor) -> Tensor:
        """The inverse of `laid_out`."""
        return weight

    def written(self) -> bool:
        """Whether the weight that was shown is not what the codes say any more."""
        shown = self.shown
        return shown is not None and not torch.equal(self.flat(shown), self.unpacked(shown.dtype).to(shown.device))

    def follow(self) -> None:
        """Let go of what was unpacked before codes or scale were changed in place, and follow them to their device."""
        if torch.compiler.is_compiling():  # nothing is written within a graph
            return
        stamps = self.stamps()
        if self.shown is not None and (self.shown.is_meta or edited(self.made_of, stamps)):
            self.shown = None
        if edited(self.made_of, stamps):
            self.cache = None
        if self.shown is not None and self.shown.device != self.codes.device:
            self.shown = self.shown.to(self.codes.device) if self.written() else None
        self.made_of = stamps

    def stamps(self) -> list[tuple[int, int]]:
        """Which tensors the weight is made of, and how often each was written to."""
        own = [t for t in self._buffers.values() if t is not None]  # `buffers()` takes five times as long
        return [(id(t), 0 if t.is_inference() else t._version) for t in own]

    def release(self) -> None:
        """Free what was unpacked, and forget what was written there."""
        self.cache = self.shown = None
        self.made_of = []

    def check_kept(self) -> None:
        """Raises ValueError if it computes with anything but what its codes say."""
        for seen in (self.cache, None if self.shown is None else self.flat(self.shown)):
            if seen is not None and not torch.equal(seen, self.unpacked(seen.dtype).to(seen.device)):
                raise ValueError(WRITTEN)
