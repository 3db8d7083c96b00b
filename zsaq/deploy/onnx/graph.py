"""An ONNX graph while it is rewritten: who makes a tensor, who reads it, and which are known."""

import itertools
from collections.abc import Sequence
from typing import Any, Final, final

import numpy as np


@final
class Graph:
    """Nodes are taken from `proto` in order, and put back, changed or not, by `put` and `done`."""

    def __init__(self, proto: Any) -> None:
        from onnx import numpy_helper

        self.proto: Final = proto
        self.known: dict[str, np.ndarray] = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
        for node in proto.graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.known[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        self.maker: dict[str, Any] = {name: node for node in proto.graph.node for name in node.output}
        self.readers: dict[str, list[Any]] = {}
        for node in proto.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.results: Final = {value.name for value in proto.graph.output}
        self.nodes: list[Any] = []
        self.count: Final = itertools.count(len(self.maker))

    def reader(self, name: str) -> Any:
        """The only node that reads a tensor; None if there are others, or it is a result."""
        readers = self.readers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.results else None

    def name(self) -> str:
        return next(name for i in self.count if (name := f"zsaq_{i}") not in self.maker and name not in self.known)

    def constant(self, value: Any, dtype: Any) -> str:
        """A new tensor of the file."""
        from onnx import numpy_helper

        name, array = self.name(), np.ascontiguousarray(value, dtype).reshape(np.shape(value))
        self.proto.graph.initializer.append(numpy_helper.from_array(array, name))
        self.known[name] = array
        return name

    def put(
        self, kind: str, inputs: Sequence[str], output: str | None = None, domain: str = "", **attributes: Any
    ) -> str:
        """One node more; the name of its output."""
        from onnx import helper

        output = output or self.name()
        self.nodes.append(helper.make_node(kind, inputs, [output], name=self.name(), domain=domain, **attributes))
        return output

    def done(self) -> None:
        """Write the nodes back, less what nothing reads any more."""
        alive, kept = set(self.results), []
        for node in reversed(self.nodes):
            if alive.intersection(node.output):
                alive.update(node.input)
                kept.append(node)
        graph = self.proto.graph
        del graph.node[:]
        graph.node.extend(reversed(kept))
        tensors = [type(t).FromString(t.SerializeToString()) for t in graph.initializer if t.name in alive]
        del graph.initializer[:]
        graph.initializer.extend(tensors)


def attributes_of(node: Any) -> dict[str, Any]:
    from onnx import helper

    return {a.name: helper.get_attribute_value(a) for a in node.attribute}
