"""What a trace says in more nodes than it needs: each would run in every pass, as ONNX Runtime leaves it."""

from typing import Any, Final, final

import numpy as np

from zsaq.deploy.onnx.graph import Graph, attributes_of

Shape = tuple[int | str, ...]
VIEWS: Final = ("Reshape", "Transpose", "CastLike")


def tidy(proto: Any) -> None:
    """Take out, in place, reshapes and transposes that undo each other, casts of constants, and what nothing reads.

    No value changes. Shapes are those that the trace wrote into the graph.
    """
    graph = Graph(proto)
    tidier = Tidier(graph)
    for node in proto.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = tidier.same.get(name, name)
        if node.op_type in VIEWS and not node.domain and node.output[0] not in graph.results:
            tidier.shorten(node)
        graph.nodes.append(node)
    graph.done()


@final
class Tidier:
    """`same`: tensors by another name that holds the same; `maker`: of each tensor, as it is now."""

    def __init__(self, graph: Graph) -> None:
        proto = graph.proto.graph
        told = [v for v in (*proto.input, *proto.value_info, *proto.output) if v.type.HasField("tensor_type")]
        self.graph = graph
        self.same: dict[str, str] = {}
        self.maker: dict[str, Any] = {}
        self.shapes: dict[str, Shape | None] = {v.name: shape_of(v) for v in told}
        self.types: dict[str, int] = {v.name: v.type.tensor_type.elem_type for v in told}

    def shorten(self, node: Any) -> None:
        """Read what it can be read from directly; where that is the same tensor, say so."""
        source, output = node.input[0], node.output[0]
        before = self.maker.get(source)
        match node.op_type:
            case "CastLike":
                kind = self.types.get(node.input[1])
                if source in self.graph.known and kind:
                    self.same[output] = self.graph.constant(self.graph.known[source], dtype_of(kind))
            case "Transpose":
                order = list(attributes_of(node).get("perm", []))
                if before is not None and before.op_type == "Transpose":
                    first = list(attributes_of(before)["perm"])
                    order = [first[i] for i in order] if order else order
                    source = before.input[0] if order == sorted(order) else source
                if order and order == sorted(order):
                    self.same[output] = source
            case "Reshape":
                shape = self.graph.known.get(node.input[1])
                copies = not attributes_of(node).get("allowzero", 0) and (shape is None or 0 in shape)
                while before is not None and before.op_type == "Reshape" and not copies:
                    node.input[0] = source = before.input[0]
                    before = self.maker.get(source)
                here, there = self.shapes.get(source), self.shapes.get(output)
                if here is not None and here == there:
                    self.same[output] = source
        self.maker[output] = node


def shape_of(value: Any) -> Shape | None:
    """Sizes, or their names; None where one is not known."""
    if not value.type.tensor_type.HasField("shape"):
        return None
    sizes = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param for d in value.type.tensor_type.shape.dim)
    return sizes if all(size != "" for size in sizes) else None


def dtype_of(kind: int) -> Any:
    from onnx import helper

    return np.dtype(helper.tensor_dtype_to_np_dtype(kind))
