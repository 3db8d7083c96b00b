"""The blocks of entries that share a scale in ONNX Runtime's MatMulNBits, and which layers have one."""

from typing import Final

from zsaq.quant.packed import PackedLayer

SIZES: Final = (128, 64, 32, 16, 256)  # that the kernels of MatMulNBits know; 2 bits are slow in blocks of 256


def block_of(columns: int, groups: int, wanted: int | None = None) -> int:
    """The first of the blocks that divides a group of the weights, and is `wanted` if the inputs have one.

    Raises ValueError if there is none.
    """
    size = columns // groups
    for block in SIZES:
        if size % block == 0 and wanted in (None, block):
            return block
    raise ValueError(
        f"{columns} inputs in {groups} groups{f', rounded in blocks of {wanted},' if wanted else ''} do not divide "
        f"into blocks of {', '.join(map(str, SIZES))}: choose such a group size, or inputs per token"
    )


def fits_kernels(columns: int, groups: int) -> bool:
    """Whether the kernels have a block for weights of that shape."""
    return any(columns // groups % block == 0 for block in SIZES)


def has_blocks(layer: PackedLayer) -> bool:
    """Whether a linear layer of inputs per token can round them once a block instead, by MatMulNBits."""
    grid = None if layer.input_quantizer is None else layer.input_quantizer.grid
    owner = layer if layer.table is None else layer.table
    kernel = grid is not None and grid.bits == 8 and grid.symmetric and grid.per == "token" and owner.grid.symmetric
    return kernel and fits_kernels(layer.shape[1], owner.scale.flatten(1).shape[1])
