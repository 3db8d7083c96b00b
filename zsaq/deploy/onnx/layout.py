"""Images as rows of pixels, channels last: what the integer kernels of convolutions read and write."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, final

import numpy as np

from zsaq.deploy.onnx.graph import Graph, attributes_of

ELEMENTWISE: Final = ("QuantizeLinear", "Clip", "Cast", "Mul", "Sub", "Add", "Div", "Relu")


@final
@dataclass(frozen=True)
class PixelRows:
    """A tensor [b, height * width, channels] in place of one [b, channels, height, width]."""

    name: str
    channels: int
    height: int
    width: int


@final
class ChannelsLast:
    """Which tensors stand with channels last, by their names as images; what is read as one becomes one."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.rows, self.both = graph, dict[str, PixelRows](), set[str]()

    def to_rows(self, name: str, channels: int, size: Sequence[int]) -> None:
        if name not in self.rows:
            put, shape = self.graph.put, self.graph.constant([0, size[0] * size[1], channels], np.int64)
            rows = put("Reshape", [put("Transpose", [name], perm=[0, 2, 3, 1]), shape])
            self.rows[name] = PixelRows(rows, channels, *size)
            self.both.add(name)

    def images(self, *names: str) -> None:
        for name in names:
            if name in self.rows and name not in self.both:
                rows = self.rows[name]
                shape = self.graph.constant([0, rows.height, rows.width, rows.channels], np.int64)
                self.graph.put("Transpose", [self.graph.put("Reshape", [rows.name, shape])], name, perm=[0, 3, 1, 2])
                self.both.add(name)

    def put(self, node: Any) -> None:
        """A node of the trace, on rows if it is elementwise and has them."""
        inputs_as_rows = [self.rows[name] for name in node.input if name in self.rows]
        single = all(
            name in self.rows or not name or np.size(self.graph.known.get(name, ())) == 1 for name in node.input
        )
        if not inputs_as_rows or not single or node.op_type not in ELEMENTWISE:
            self.images(*node.input)
            self.graph.nodes.append(node)
            return
        inputs = [self.rows[name].name if name in self.rows else name for name in node.input]
        name = self.graph.put(node.op_type, inputs, domain=node.domain, **attributes_of(node))
        largest = max(inputs_as_rows, key=lambda rows: rows.height * rows.width)  # the others are spread over it
        self.rows[node.output[0]] = replace(largest, name=name)
