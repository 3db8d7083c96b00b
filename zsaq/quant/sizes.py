"""What a model takes as it is saved: bytes of its tensors, and bits for each of its parameters."""

from torch import nn

from zsaq.quant.grid import Grid
from zsaq.quant.layers import QuantLayer
from zsaq.quant.packed import PackedLayer
from zsaq.quant.packing import width
from zsaq.quant.plan import Plan


def matrix_bytes(rows: int, columns: int, grid: Grid) -> int:
    """Of weights [rows, columns] on a grid: codes, scales and zeros."""
    sharing = {"tensor": 1, "channel": rows}.get(str(grid.per)) or rows * columns // int(grid.per)
    each = grid.scaling.dtype.itemsize + (0 if grid.symmetric else 1)
    return rows * width(columns, grid.bits) + sharing * each + (4 if grid.scaling.united else 0)


def bits_per_weight(model: nn.Module) -> float:
    """8 times the bytes of all tensors that are saved, of those too that stay in floats, for each parameter of the
    float model; of a student, a loaded model or a float one. What is tied counts once."""
    plan, size, count, done = vars(model).get("zsaq_plan"), 0, 0, set()
    tied = plan.tied if isinstance(plan, Plan) else {}
    for name, layer in model.named_modules():
        if not isinstance(layer, QuantLayer | PackedLayer):
            continue
        done |= {f"{name}.{part}" for part in ("weight", "codes", "scale", "unit", "zero")}
        done |= {f"{name}.{key}" for key, _ in layer.named_parameters() if key.startswith("weight_quantizer.")}
        done |= {f"{name}.{key}" for key, _ in layer.named_buffers() if key.startswith("weight_quantizer.")}
        if name not in tied:
            grid = layer.weight_quantizer.grid if isinstance(layer, QuantLayer) else layer.grid
            rows, columns = layer.rows().flatten(1).shape if isinstance(layer, QuantLayer) else layer.shape
            size, count = size + matrix_bytes(rows, columns, grid), count + rows * columns
    saved = model.state_dict().keys()
    for name, parameter in model.named_parameters():
        if name not in done:
            size, count = size + parameter.nbytes, count + parameter.numel()
    size += sum(buffer.nbytes for name, buffer in model.named_buffers() if name in saved and name not in done)
    return 8 * size / count
