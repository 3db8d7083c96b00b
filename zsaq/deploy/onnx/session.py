"""ONNX Runtime at work: a graph that it has opened, and an export that answers by the graph that is faster here."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, final

import numpy as np
import torch

from zsaq.deploy.onnx.given import Given
from zsaq.deploy.onnx.weights import BLOCKS, MODEL
from zsaq.io.added import sealed_export

LENGTHS: Final = (1, 4, 16, 64, 256)  # tokens at which the two graphs are compared


@contextmanager
def spoken(file: Path) -> Iterator[None]:
    """ONNX Runtime's own exceptions, and protobuf's, as ValueError."""
    from google.protobuf.message import DecodeError
    from onnxruntime.capi import onnxruntime_pybind11_state as errors  # type: ignore[attr-defined]

    kinds = (
        errors.Fail, errors.InvalidArgument, errors.InvalidGraph, errors.InvalidProtobuf, errors.NoSuchFile,
        errors.NotImplemented, errors.RuntimeException, errors.EPFail, DecodeError, FileNotFoundError,
    )  # fmt: skip
    try:
        yield
    except kinds as error:
        raise ValueError(f"ONNX Runtime does not run {file}: {error}; export the model again") from error


@final
class Session:
    """A graph that ONNX Runtime has opened on the CPU: of `file`, or `proto` whose weights lie beside it.

    0 threads lets the runtime choose. Raises ValueError for a graph that it does not open or run.
    """

    def __init__(self, file: Path, proto: Any = None, threads: int = 0) -> None:
        import onnxruntime

        options = session_options(onnxruntime, threads)
        if proto is not None:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(file.parent))
        self.file: Final = file
        with spoken(file):
            model = str(file) if proto is None else proto.SerializeToString()
            self.session: Final = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.shapes: Final[dict[str, list[Any]]] = {value.name: value.shape for value in self.session.get_inputs()}
        self.types: Final[dict[str, str]] = {value.name: value.type for value in self.session.get_inputs()}
        self.answers: Final = [value.name for value in self.session.get_outputs()]

    def run(self, inputs: dict[str, np.ndarray]) -> list[Any]:
        """Outputs, in the graph's order; inputs that it does not have are left out.

        Raises ValueError for one that is missing, for another shape than the graph was made for, and for one batch or
        length beside another.
        """
        sized: dict[str, int] = {}  # what varies, as it is here
        for name, shape in self.shapes.items():
            if name not in inputs:
                raise ValueError(f"{self.file} reads {', '.join(self.shapes)}; {name} is missing")
            sizes = inputs[name].shape
            if len(sizes) != len(shape) or any(type(n) is int and n != m for n, m in zip(shape, sizes, strict=True)):
                remedy = "; zsaq export DIR --to onnx --size HEIGHTxWIDTH makes one of another size" * (len(shape) == 4)
                raise ValueError(f"{self.file} takes {name} of {shaped(shape)}; these have {shaped(sizes)}{remedy}")
            for varying, n in zip(shape, sizes, strict=True):
                if type(varying) is str and sized.setdefault(varying, n) != n:
                    had = f"{varying} {n} where the inputs before it have {sized[varying]}"
                    raise ValueError(f"{self.file} takes inputs of one {varying}; {name} has {had}")
        with spoken(self.file):
            return list(self.session.run(None, {name: inputs[name] for name in self.shapes}))


def shaped(sizes: Any) -> str:
    """1 x 3 x 32 x 32, with names for what varies."""
    return " x ".join(map(str, sizes))


def session_options(onnxruntime: Any, threads: int = 0) -> Any:
    """Session options: no messages beside exceptions; 0 threads lets the runtime choose."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, threads
    # Threads that spin on when a run has ended would slow what comes next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


@final
class OnnxModel:
    """The export in `folder`, or in its subfolder onnx; call it with the model's inputs, as tensors or arrays.

    The graph of the student's own rule serves every size. With `same_rule=False` short inputs may go to `blocks.onnx`,
    the same codes in kernels that round inputs once a block instead of once a token: which is finer, but not the rule
    that was trained. Both are timed when the export is opened, on this machine and with these `threads` (0: as many
    as there are), and `short` is the number of tokens up to which it wins. Raises ValueError where there is no export,
    for one whose files have changed since it was written, and for one that lies in the folder of another student than
    it was made of, or of one that its manifest does not fit.
    """

    def __init__(self, folder: str | Path, threads: int = 0, same_rule: bool = True) -> None:
        place = Path(folder) / "onnx" if (Path(folder) / "onnx").is_dir() else Path(folder)
        if not (place / MODEL).is_file():
            raise ValueError(f"{folder} holds no {MODEL}: run zsaq export {folder} --to onnx")
        facts = sealed_export(place)
        self.exact = Session(place / MODEL, threads=threads)
        self.given = Given(self.exact.file, self.exact.types, facts)
        self.blocks: Session | None = None
        self.short, self.last = 0, 1
        if not same_rule:
            if not (place / BLOCKS).is_file():
                raise ValueError(
                    f"{place} holds no {BLOCKS}: only inputs of 8 bits a token have a second rule; leave same_rule on"
                )
            self.blocks = Session(place / BLOCKS, threads=threads)
            self.last = last if type(last := facts.get("last")) is int else 1
            self.short = self._crossing([length for length in LENGTHS if length <= self.given.tokens])

    def __call__(self, **inputs: Any) -> Any:
        """Logits, Tensor; of a model with several answers (start and end of a span), each by its name.

        Text without `attention_mask` or `token_type_ids` gets ones and zeros. Raises ValueError as `Given` does, and
        `Session.run`.
        """
        arrays = self.given(inputs)
        session, ids = self.exact, arrays.get("input_ids")
        if self.blocks is not None and ids is not None and ids.size <= self.short:
            session = self.blocks
        answers = [torch.from_numpy(array) for array in session.run(arrays)]
        return answers[0] if len(answers) == 1 else dict(zip(session.answers, answers, strict=True))

    def _crossing(self, lengths: list[int]) -> int:
        """The most tokens, of those tried, up to which the blocks are faster."""
        longest = 0
        for length in lengths:
            ids = np.ones((1, length), dtype=np.int64)
            ids[:, -1] = self.last
            self.short = 0
            exact = self._best(ids)
            self.short = length
            if self._best(ids) >= exact:
                break
            longest = length
        return longest

    def _best(self, ids: np.ndarray) -> float:
        times, inputs = [], {name: ids for name in self.exact.shapes if name.endswith("input_ids")}
        for _ in range(4):
            begin = time.perf_counter()
            self(**inputs)
            times.append(time.perf_counter() - begin)
        return min(times)
