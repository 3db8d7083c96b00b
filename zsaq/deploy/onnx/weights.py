"""The files of an export: the weights of several graphs in one, each tensor once."""

import hashlib
from pathlib import Path
from typing import Any, Final, final

MODEL, BLOCKS, WEIGHTS = "model.onnx", "blocks.onnx", "model.onnx.data"
INLINE: Final = 1024  # bytes; smaller tensors stay in the graph
ALIGNED: Final = 64


@final
class Weights:
    """A file of tensors beside the graphs that read it. `attach` moves a graph's large tensors there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offsets: dict[bytes, int] = {}

    def attach(self, proto: Any) -> None:
        """Replace the raw data of the initializers of an onnx.ModelProto by places in the file, in place."""
        import onnx

        with self.path.open("ab") as file:
            for tensor in proto.graph.initializer:
                raw = tensor.raw_data
                if len(raw) < INLINE:
                    continue
                key = hashlib.sha256(raw).digest()
                if key not in self.offsets:
                    file.write(b"\0" * (-file.tell() % ALIGNED))
                    self.offsets[key] = file.tell()
                    file.write(raw)
                tensor.ClearField("raw_data")
                place = {"location": self.path.name, "offset": self.offsets[key], "length": len(raw)}
                tensor.data_location = onnx.TensorProto.EXTERNAL
                for name, value in place.items():
                    tensor.external_data.add(key=name, value=str(value))
