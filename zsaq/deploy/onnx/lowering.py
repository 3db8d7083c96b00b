"""Convolutions of a traced graph become ONNX Runtime's kernels, chosen by what stands before them.

A BatchNormalization that alone reads a convolution is folded into its float scale and bias, never into its codes.

- From codes: patches side by side, and MatMulIntegerToFloat: exact sums of integers, then scale and bias in floats, as
  the student has them. QLinearConv would round biases to integers, which at few bits moves codes, and is no faster.
- From floats, and where there are groups or few channels: Conv in floats, with weights widened from the same codes when
  the file is opened.
"""

from collections.abc import Iterator
from typing import Any, Final, final

import numpy as np

from zsaq.deploy.onnx.convolution import DOMAIN
from zsaq.deploy.onnx.graph import Graph, attributes_of
from zsaq.deploy.onnx.layout import ChannelsLast, PixelRows

NARROW: Final = 16  # fewer channels: copying patches takes longer than a float convolution
FLOAT, INT8, INT32 = 1, 3, 6  # ONNX's numbers of the types


@final
class Lowering:
    """One convolution: `node`, with the norm behind it folded into `scale` [out, groups] and `bias` [out], float64."""

    def __init__(self, graph: Graph, node: Any) -> None:
        known = graph.known
        _, self.stored, table, scale, zero, bias = node.input
        at = attributes_of(node)
        self.graph, self.node, self.input, self.output = graph, node, node.input[0], node.output[0]
        self.kernel, self.strides, self.dilations = at["kernel_shape"], at["strides"], at["dilations"]
        self.pads, self.size, self.group, self.channels = (
            list(at["pads"]),
            list(at["size"]),
            at["group"],
            at["channels"],
        )
        self.table, self.zero, self.bias = known[table], known[zero].astype(np.int32), known[bias].astype(np.float64)
        self.rows, self.columns = len(self.bias), self.channels // self.group * self.kernel[0] * self.kernel[1]
        self.scale = np.broadcast_to(known[scale].astype(np.float64), (self.rows, known[scale].shape[1]))
        self.zero = np.broadcast_to(self.zero, (self.rows, self.zero.shape[1]))
        self.outside = self.fold_pad()
        self.norm = self.fold_norm()

    def fold_pad(self) -> list[int]:
        """A Pad with zeros before becomes the convolution's own; what the convolution was padded by from outside then:
        top, left, bottom, right."""
        known, node = self.graph.known, self.graph.maker.get(self.input)
        if node is None or node.op_type != "Pad" or attributes_of(node).get("mode", b"constant") != b"constant":
            return [0] * 4
        pads = known.get(node.input[1])
        value = known.get(node.input[2], np.ones(1)) if len(node.input) > 2 and node.input[2] else np.zeros(1)
        if pads is None or len(pads) != 8 or pads[[0, 1, 4, 5]].any() or (pads < 0).any() or value.any():
            return [0] * 4
        outside = pads[[2, 3, 6, 7]].tolist()
        self.pads = [p + q for p, q in zip(self.pads, outside, strict=True)]
        self.size = [int(n - pads[i] - pads[i + 4]) for i, n in zip((2, 3), self.size, strict=True)]
        self.input = node.input[0]
        return outside

    def fold_norm(self) -> str | None:
        """What the convolution was called before its norm, if there is one."""
        node, before = self.graph.reader(self.output), self.output
        if node is None or node.op_type != "BatchNormalization" or node.input[0] != before:
            return None
        gamma, beta, mean, variance = (self.graph.known[name].astype(np.float64) for name in node.input[1:])
        factor = gamma / np.sqrt(variance + attributes_of(node).get("epsilon", 1e-5))
        self.scale, self.bias = self.scale * factor[:, None], (self.bias - mean) * factor + beta
        self.output = node.output[0]
        return before

    def widened(self, dtype: Any) -> str:
        """[out, columns] of the codes, from the stored bytes through the table."""
        put, const = self.graph.put, self.graph.constant
        values = self.table.shape[1] * self.graph.known[self.stored].shape[1]
        wide = put("Gather", [const(self.table, dtype), put("Cast", [self.stored], to=INT32)])
        wide = put("Reshape", [wide, const([self.rows, values], np.int64)])
        if values == self.columns:
            return wide
        return put("Slice", [wide, const([0], np.int64), const([self.columns], np.int64), const([1], np.int64)])

    def operand(self) -> tuple[str, str]:
        """The right side of the product, [columns, out] with channels last in a column, and its zero.

        int8 of code - zero; where that takes 9 bits uint8 codes, for which processors are slower.
        """
        put, const = self.graph.put, self.graph.constant
        if not self.zero.any():
            weight, zero = self.widened(np.int8), const(0, np.int8)
        elif self.table.max() <= 127:
            weight, zero = put("Sub", [self.widened(np.int32), const(self.zero, np.int32)]), const(0, np.int8)
            weight = put("Cast", [weight], to=INT8)
        else:
            weight, zero = self.widened(np.uint8), const(self.zero[:, 0], np.uint8)
        weight = put("Reshape", [weight, const([self.rows, self.channels, *self.kernel], np.int64)])
        weight = put("Transpose", [weight], perm=[2, 3, 1, 0])
        return put("Reshape", [weight, const([self.columns, self.rows], np.int64)]), zero

    def lower(self, layout: ChannelsLast) -> dict[str, Any]:
        """Write the kernel; its kind, the names of the tensors at its ends, and, of a Pad that became its own, the size
        of what goes in and the four sides."""
        padded = {"size": self.size, "outside": self.outside} if any(self.outside) else {}
        before = self.graph.maker.get(self.input)
        if before is None or before.op_type != "DequantizeLinear" or self.scale.shape[1] > 1 or not integral(self.node):
            layout.images(self.input)
            self.in_floats()
            return {"kernel": "Conv", "input": self.input, "output": self.output} | padded
        codes, scale, zero = before.input
        layout.to_rows(codes, self.channels, self.size)
        out = self.in_integers(layout.rows[codes].name, scale, zero)
        layout.rows[self.output] = out
        return {"kernel": "MatMulIntegerToFloat", "input": layout.rows[codes].name, "output": out.name} | padded

    def in_integers(self, codes: str, scale: str, zero: str) -> PixelRows:
        put, const = self.graph.put, self.graph.constant
        (kh, kw), (sh, sw), (dh, dw), (h, w) = self.kernel, self.strides, self.dilations, self.size
        top, left, bottom, right = self.pads
        oh = (h + top + bottom - dh * (kh - 1) - 1) // sh + 1
        ow = (w + left + right - dw * (kw - 1) - 1) // sw + 1
        x = codes
        if (kh, kw, sh, sw, *self.pads) != (1, 1, 1, 1, 0, 0, 0, 0):
            # Which pixel stands where in which patch; behind the last pixel stands one of zeros, for all outside.
            down = (np.arange(oh) * sh)[:, None, None, None] + (np.arange(kh) * dh)[None, None, :, None] - top
            along = (np.arange(ow) * sw)[None, :, None, None] + (np.arange(kw) * dw)[None, None, None, :] - left
            starts = np.where((down >= 0) & (down < h), down * w, h * w)
            offsets = np.where((along >= 0) & (along < w), along, h * w)
            index = put("Add", [const(starts, np.int32), const(offsets, np.int32)])
            index = put("Reshape", [put("Min", [index, const(h * w, np.int32)]), const([-1], np.int64)])
            if any(self.pads):
                x = put("Pad", [x, const([0, 0, 0, 0, 1, 0], np.int64), zero])
            x = put("Reshape", [put("Gather", [x, index], axis=1), const([0, oh * ow, self.columns], np.int64)])
        weight, middle = self.operand()
        scales, bias = const(self.scale[:, 0], np.float32), const(self.bias, np.float32)
        y = put("MatMulIntegerToFloat", [x, weight, scale, scales, zero, middle, bias], domain="com.microsoft")
        return PixelRows(y, self.rows, oh, ow)

    def in_floats(self) -> None:
        put, const, groups = self.graph.put, self.graph.constant, self.scale.shape[1]
        weight = put("Cast", [self.widened(self.table.dtype)], to=FLOAT)
        weight = put("Reshape", [weight, const([self.rows, groups, self.columns // groups], np.int64)])
        if self.zero.any():
            weight = put("Sub", [weight, const(self.zero[..., None], np.float32)])
        weight = put("Mul", [weight, const(self.scale[..., None], np.float32)])
        weight = put("Reshape", [weight, const([self.rows, self.channels // self.group, *self.kernel], np.int64)])
        put(
            "Conv", [self.input, weight, const(self.bias, np.float32)], self.output, kernel_shape=self.kernel,
            strides=self.strides, pads=self.pads, dilations=self.dilations, group=self.group,
        )  # fmt: skip


def pool_first(proto: Any) -> None:
    """MaxPool before a rounding instead of behind it: both keep order, and the runtime pools bytes slowly.

    The division stands alone then, or the runtime would turn them back.
    """
    graph = Graph(proto)
    for node in proto.graph.node:
        chain: list[Any] = []
        step = graph.maker.get(node.input[0]) if node.op_type == "MaxPool" else None
        while step is not None:
            chain.append(step)
            step = graph.maker.get(step.input[0]) if step.op_type in ("DequantizeLinear", "Clip") else None
        ends = [chain[0].op_type, chain[-1].op_type] if chain else []
        alone = all(graph.reader(step.output[0]) is not None for step in chain)
        if ends != ["DequantizeLinear", "QuantizeLinear"] or not alone:
            graph.nodes.append(node)
            continue
        for step in chain:
            graph.nodes.remove(step)
        first = chain[-1]
        pooled = graph.put("MaxPool", [first.input[0]], **attributes_of(node))
        first.input[0] = graph.put("Div", [pooled, first.input[1]])
        first.input[1] = graph.constant(1, np.float32)
        chain[0].output[0] = node.output[0]
        graph.nodes += chain[::-1]
    graph.done()


def integral(node: Any) -> bool:
    """Whether a convolution from codes is a product of integers."""
    at = attributes_of(node)
    tiles = at["kernel_shape"] == at["strides"] and not any(at["pads"]) and at["dilations"] == [1, 1]
    return at["group"] == 1 and (at["channels"] >= NARROW or tiles)


def spelled_out(graph: Graph, node: Any) -> Iterator[Any]:
    """DequantizeLinear, or the runtime would take what stands between two roundings for its own to round."""
    from onnx import helper

    code, scale, zero = node.input
    name = graph.name()
    yield helper.make_node("Cast", [code], [name], to=FLOAT)
    if graph.known[zero].any():
        less = graph.name()
        yield helper.make_node("Sub", [name, graph.constant(graph.known[zero], np.float32)], [less])
        name = less
    yield helper.make_node("Mul", [name, scale], [node.output[0]])


def lower(proto: Any) -> dict[str, dict[str, Any]]:
    """Replace the convolutions of a traced graph; for each its kernel and the tensors at its ends, by layer."""
    pool_first(proto)
    graph, kernels, norms = Graph(proto), {}, set()
    layout = ChannelsLast(graph)
    for node in proto.graph.node:
        if node.domain == DOMAIN:
            step = Lowering(graph, node)
            kernels[step.stored.removeprefix("model.").removesuffix(".stored")] = step.lower(layout)
            norms |= {step.norm} - {None}
        elif node.op_type == "DequantizeLinear":
            for reader in graph.readers.get(node.output[0], []):
                if reader.domain == DOMAIN and integral(reader):
                    at = attributes_of(reader)
                    layout.to_rows(node.input[0], at["channels"], at["size"])
            for part in spelled_out(graph, node):
                layout.put(part)
        elif not norms.intersection(node.input):
            layout.put(node)
    layout.images(*graph.results)
    graph.done()
    return kernels
