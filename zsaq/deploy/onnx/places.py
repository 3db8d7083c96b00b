"""Where a layer's input and output stand in an exported graph."""

from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np

from zsaq.deploy.onnx.rounding import shifts
from zsaq.quant.kinds import factor_of
from zsaq.quant.packed import PackedEmbedding, PackedLayer

# What follows each kernel up to the layer's output, the bias aside.
AFTER: Final[dict[str, tuple[str, ...]]] = {
    "MatMulIntegerToFloat": ("Mul",),
    "MatMulInteger": ("Cast", "Mul", "ReduceSum", "Reshape", "Mul"),
    "MatMulNBits": (),
    "GatherBlockQuantized": (),
    "MatMul": (),
}
# Between stored bytes and kernels.
WIDENING: Final = (
    "Cast",
    "Gather",
    "Identity",
    "Reshape",
    "Transpose",
    "Slice",
    "Sub",
    "Mul",
)  # between stored bytes and kernels
WIDEST: Final = 2**16  # pixels
REACH: Final = 6  # so many nodes back from codes to the floats that they come from


@final
@dataclass(frozen=True)
class Place:
    """Names of tensors in the graph: what goes into a layer, and what comes out.

    `grid`: scale and zero, if codes go in; they and the output then have channels last, pixels in one dimension.
    `padded`: height and width of what goes into a kernel that pads for a module before the layer, and by how much: top,
    left, bottom, right.
    """

    input: str
    output: str
    grid: tuple[float, float] | None = None
    padded: tuple[int, ...] = ()

    def read(self, values: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Floats that went in and came out, channels before pixels."""
        x, y = values[self.input], values[self.output]
        if self.grid is not None:
            scale, zero = (np.float32(number) for number in self.grid)
            x, y = ((x.astype(np.float32) - zero) * scale).swapaxes(1, 2), y.swapaxes(1, 2)
        if self.padded:
            height, width, top, left, bottom, right = self.padded
            x = x.reshape(*x.shape[:2], height, width)
            x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
        return x, y


@final
@dataclass(frozen=True)
class Written:
    """How the export wrote a layer. `bias`: whether it has one; `static`: whether the scale of its inputs stands in the
    kernel; `divided`: whether they are divided by it before they are rounded; `scaled`: whether it is a token table
    with a factor."""

    bias: bool
    static: bool
    divided: bool
    scaled: bool

    @classmethod
    def of(cls, layer: PackedLayer) -> "Written":
        quantizer = layer.input_quantizer
        static = quantizer is not None and quantizer.ranges.static
        divided = quantizer is not None and (not static or shifts(quantizer))
        scaled = isinstance(layer, PackedEmbedding) and factor_of(layer) != 1
        return cls(layer._parameters.get("bias") is not None, static, divided, scaled)


def find_places(
    graph: Any, layers: dict[str, PackedLayer], tied: dict[str, str], calls: list[str]
) -> dict[str, list[Place]]:
    """The places of the layers whose stored bytes reach kernels of `AFTER` in the form that the export writes, one for
    each call. `calls`: the layers in the order in which the model calls them; what shares its bytes, a layer with
    itself or with those that are tied to it, finds its own by that order, which is the graph's too."""
    makers = {output: node for node in graph.node for output in node.output}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    order = {id(node): number for number, node in enumerate(graph.node)}
    sharing: dict[str, list[str]] = {}
    for layer in layers:
        sharing.setdefault(tied.get(layer, layer), []).append(layer)
    places: dict[str, list[Place]] = {}
    for owner, members in sharing.items():
        ends = {owner, *members}
        found = {id(node): node for end in ends for node in _kernels(f"model.{end}.stored", readers)}
        for table in (True, False):
            mine = [node for node in found.values() if (node.op_type == "GatherBlockQuantized") == table]
            kind = [name for name in members if isinstance(layers[name], PackedEmbedding) == table]
            own = [name for name in calls if name in kind] or kind  # the first text may not reach it
            if len(mine) != len(own):
                continue
            for name, node in zip(own, sorted(mine, key=lambda node: order[id(node)]), strict=True):
                place = _place(node, Written.of(layers[name]), makers, readers)
                places.setdefault(name, []).extend([] if place is None else [place])
    return {name: each for name, each in places.items() if len(each) == max(1, calls.count(name))}


def find_convolutions(graph: Any, kernels: dict[str, dict[str, Any]]) -> dict[str, list[Place]]:
    """The places of convolutions, each with the norm behind it. Raises ValueError for sizes that no export writes."""
    from onnx import numpy_helper

    makers = {output: node for node in graph.node for output in node.output}
    known = {tensor.name: tensor for tensor in graph.initializer}
    places = {}
    for layer, ends in kernels.items():
        node, padded = makers.get(ends["output"]), padding_of(layer, ends)
        if node is not None and node.op_type == "Conv" and node.input[0] == ends["input"]:
            places[layer] = [Place(ends["input"], ends["output"], padded=padded)]
        elif (
            node is not None and node.op_type == "MatMulIntegerToFloat" and {node.input[2], node.input[4]} <= set(known)
        ):
            scale, zero = (float(numpy_helper.to_array(known[node.input[i]])) for i in (2, 4))
            places[layer] = [Place(ends["input"], ends["output"], (scale, zero), padded)]
    return places


def padding_of(layer: str, ends: dict[str, Any]) -> tuple[int, ...]:
    """`Place.padded` of what export.json tells of a convolution."""
    if "outside" not in ends:
        return ()
    padded = *ends.get("size", ()), *ends["outside"]
    if len(padded) != 6 or any(type(n) is not int or not 0 <= n <= WIDEST for n in padded):
        raise ValueError(f"export.json says that {layer} is padded by {padded!r:.100}: export the student again")
    return padded


def _place(kernel: Any, written: Written, makers: dict[str, Any], readers: dict[str, list[Any]]) -> Place | None:
    kind, start, output = kernel.op_type, kernel.input[0], kernel.output[0]
    if kind == "GatherBlockQuantized":
        start = kernel.input[1]
    elif kind in ("MatMulIntegerToFloat", "MatMulInteger"):
        for step in ("QuantizeLinear", *(("Div",) if written.divided else ())):
            node = _back(start, step, makers)
            if node is None:
                return None
            start = node.input[0]
    whole = kind == "MatMulNBits" or (kind == "MatMulIntegerToFloat" and written.static)  # scale and bias within
    behind = *(("Mul",) if written.scaled else ()), *(("Add",) if written.bias else ())
    after = () if whole else (*AFTER[kind], *behind)
    for kind in after:
        following = readers.get(output, [])
        if len(following) != 1 or following[0].op_type != kind:
            if kind == "Reshape":  # which is left out where it changes nothing
                continue
            return None
        output = following[0].output[0]
    return Place(start, output)


def _kernels(name: str, readers: dict[str, list[Any]]) -> list[Any]:
    """The kernels that a tensor of weights reaches through what widens it."""
    kernels = []
    for node in readers.get(name, []):
        if node.op_type in AFTER:
            kernels.append(node)
        elif node.op_type in WIDENING:
            kernels += _kernels(node.output[0], readers)
    return kernels


def _back(name: str, kind: str, makers: dict[str, Any]) -> Any:
    """The node of a kind that `name` comes from along first inputs; None if there is none near."""
    for _ in range(REACH):
        node = makers.get(name)
        if node is None or node.op_type == kind:
            return node
        name = node.input[0]
    return None
