"""OpenVINO at work: an export that it has opened, with the numbers that the student computes in."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, final

import numpy as np

MODEL: Final = "openvino_model.xml"  # as Optimum calls it
EXACT: Final = {  # what some processors would round more coarsely: floats between layers, and inputs of weights
    "INFERENCE_PRECISION_HINT": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
}


@contextmanager
def spoken(file: Path) -> Iterator[None]:
    """OpenVINO's own errors as ValueError, which says to export anew."""
    try:
        yield
    except RuntimeError as error:
        line = next((line for line in reversed(str(error).splitlines()) if line.strip()), "no reason is given")
        raise ValueError(f"OpenVINO does not run {file}: {line.strip():.300}; export the model again") from error


@final
class Session:
    """The model in `folder`, on the CPU; `watched`: further tensors to answer. 0 threads lets the runtime choose.

    Raises ValueError for a model that OpenVINO does not open or run, and for inputs that are missing.
    """

    def __init__(self, folder: Path, watched: tuple[str, ...] = (), threads: int = 0) -> None:
        import openvino

        core, self.file = openvino.Core(), folder / MODEL
        if not self.file.is_file():
            raise ValueError(f"{folder} holds no {MODEL}: run zsaq export DIR --to openvino")
        with spoken(self.file):
            self.model: Final[Any] = core.read_model(self.file)
        self.answers: Final = [output.get_any_name() for output in self.model.outputs]
        known = {name for value in (*self.model.inputs, *self.model.outputs) for name in value.get_names()}
        self.watched: Final = tuple(name for name in watched if name not in known)
        options = EXACT | ({"INFERENCE_NUM_THREADS": threads} if threads else {})
        with spoken(self.file):
            if self.watched:
                self.model.add_outputs(list(self.watched))
            self.compiled: Final = core.compile_model(self.model, "CPU", options)
            self.request: Final = self.compiled.create_infer_request()

    def rows(self, input: str, output: str, count: int) -> np.ndarray:
        """What comes out at the tensor `output` when that called `input`, of integers, has all numbers below `count`:
        a part of the model alone. Raises ValueError for tensors that it does not have."""
        import openvino

        with spoken(self.file):
            model = openvino.Core().read_model(self.file)
            ends = {name: port for node in model.get_ops() for port in node.outputs() for name in port.get_names()}
            if not {input, output} <= ends.keys():
                raise ValueError(f"{self.file} has no tensors {input} and {output}: export the student again")
            numbers = openvino.opset13.parameter([-1], ends[input].get_element_type())
            for reader in ends[input].get_target_inputs():
                reader.replace_source_output(numbers.output(0))
            part = openvino.Model([ends[output].get_node()], [numbers])  # type: ignore[arg-type]
            compiled: Any = openvino.Core().compile_model(part, "CPU", EXACT)
            return np.array(compiled([np.arange(count, dtype=ends[input].get_element_type().to_dtype())])[0])

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The model's answers and what is watched, by name."""
        wanted = [value.get_any_name() for value in self.model.inputs]
        if missing := [name for name in wanted if name not in inputs]:
            raise ValueError(f"{self.file} reads {', '.join(wanted)}; {missing[0]} is missing")
        with spoken(self.file):
            values = list(self.request.infer({name: inputs[name] for name in wanted}).values())
        names = (*self.answers, *self.watched)
        assert len(values) == len(names)
        return {name: np.array(value) for name, value in zip(names, values, strict=True)}
