"""The values that pass the layers of an exported graph, and what it answers."""

from pathlib import Path
from typing import Any, Final, final

import numpy as np

from zsaq.deploy.onnx.places import find_convolutions, find_places
from zsaq.deploy.onnx.session import Session, spoken
from zsaq.quant.packed import PackedLayer

Arrays = dict[str, np.ndarray]


@final
class Captures:
    """A graph file opened twice: as it is deployed, and with the places of its layers as further outputs.

    `layers`: those that are no convolutions; `tied`: as in the plan; `calls`: layers in the order in which the model
    calls them; `convolutions`: as export.json has them. Nothing is written: weights are read from beside the file.
    Raises ValueError as `Session` does.
    """

    def __init__(
        self, file: Path, layers: dict[str, PackedLayer], tied: dict[str, str], calls: list[str],
        convolutions: dict[str, dict[str, Any]],
    ) -> None:  # fmt: skip
        import onnx

        self.file: Final = file
        with spoken(file):
            self.proto: Final[Any] = onnx.load(str(file), load_external_data=False)
        self.places: Final = find_places(self.proto.graph, layers, tied, calls)
        self.places.update(find_convolutions(self.proto.graph, convolutions))
        read = {name for node in self.proto.graph.node for name in node.input}
        # What a model computes and does not answer is not in its graph.
        self.absent: Final = {
            name
            for name in (*layers, *convolutions)
            if name not in tied and name not in tied.values() and f"model.{name}.stored" not in read
        }
        self.deployed: Final = Session(file)
        wanted = {name for each in self.places.values() for place in each for name in (place.input, place.output)}
        wanted -= {value.name for value in (*self.proto.graph.output, *self.proto.graph.input)}
        captured = onnx.ModelProto.FromString(self.proto.SerializeToString())
        captured.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(wanted))
        self.captured: Final = Session(file, captured)
        self.outputs: Final = [value.name for value in captured.graph.output]

    def run(
        self, inputs: dict[str, np.ndarray]
    ) -> tuple[Arrays, Arrays, dict[str, list[tuple[np.ndarray, np.ndarray]]]]:
        """Answers as deployed, answers with captures, and what went into each place and came out, call by call."""
        watched = dict(zip(self.outputs, self.captured.run(inputs), strict=True))
        values = inputs | watched
        seen = {layer: [place.read(values) for place in each] for layer, each in self.places.items()}
        names = self.deployed.answers
        deployed = dict(zip(names, self.deployed.run(inputs), strict=True))
        return deployed, {name: watched[name] for name in names}, seen

    def rows(self, layer: str, count: int) -> np.ndarray:
        """All rows of a token table, by its part of the graph alone; inputs of a run reach only a few."""
        import onnx

        place, proto = self.places[layer][0], onnx.ModelProto.FromString(self.proto.SerializeToString())
        makers, alive = {output: node for node in proto.graph.node for output in node.output}, [place.output]
        for name in alive:
            if name != place.input and name in makers:
                alive += [reads for reads in makers[name].input if reads not in alive]
        kept = [node for node in proto.graph.node if set(node.output) & set(alive) and place.input not in node.output]
        del proto.graph.node[:], proto.graph.output[:], proto.graph.input[:]
        proto.graph.node.extend(kept)
        ids = onnx.helper.make_tensor_value_info(place.input, onnx.TensorProto.INT64, ["count"])
        proto.graph.input.append(ids)
        proto.graph.output.append(onnx.ValueInfoProto(name=place.output))
        return Session(self.file, proto).run({place.input: np.arange(count)})[0]
