"""An ONNX export at work: logits from tensors, by the graph that this machine runs faster at the input's size."""

import json
import time
from pathlib import Path
from typing import Any, Final, final

import numpy as np
import torch
from torch import Tensor

from zsaq.export.taps import quiet

EXACT, BLOCKS, FACTS = "model.onnx", "blocks.onnx", "export.json"
LENGTHS: Final = (1, 4, 16, 64, 256)  # tokens at which the two graphs are compared


@final
class Runtime:
    """The export in `folder`, or in its subfolder onnx; call it with the model's inputs, as tensors or arrays.

    The graph of the student's own rule serves every size. With `same_rule=False` short inputs may go to `blocks.onnx`,
    the same codes in kernels that round inputs once a block instead of once a token: which is finer, but not the rule
    that was trained. Both are timed when the export is opened, on this machine and with these `threads` (0: as many
    as there are), and `short` is the number of tokens up to which it wins. Raises ValueError where there is no export.
    """

    def __init__(self, folder: str | Path, threads: int = 0, same_rule: bool = True) -> None:
        import onnxruntime

        place = Path(folder) / "onnx" if (Path(folder) / "onnx").is_dir() else Path(folder)
        if not (place / EXACT).is_file():
            raise ValueError(f"{folder} holds no {EXACT}: run zsaq export {folder} --to onnx")
        options = quiet(onnxruntime, threads)
        self.exact = onnxruntime.InferenceSession(str(place / EXACT), options)
        self.blocks = None
        self.short = 0
        if not same_rule:
            if not (place / BLOCKS).is_file():
                raise ValueError(f"{place} holds no {BLOCKS}: only inputs of 8 bits a token have a second rule")
            self.blocks = onnxruntime.InferenceSession(str(place / BLOCKS), options)
            most = json.loads((place / FACTS).read_text(encoding="utf-8"))["tokens"]
            self.short = self._crossing([length for length in LENGTHS if length <= most])

    def __call__(self, **inputs: Any) -> Tensor:
        """Logits. Text without `attention_mask` or `token_type_ids` gets ones and zeros."""
        arrays = {name: np.asarray(value) for name, value in inputs.items()}
        session = self.exact
        if (ids := arrays.get("input_ids")) is not None:
            names = {value.name for value in session.get_inputs()}
            if "attention_mask" in names:
                arrays.setdefault("attention_mask", np.ones_like(ids))
            if "token_type_ids" in names:
                arrays.setdefault("token_type_ids", np.zeros_like(ids))
            if self.blocks is not None and ids.size <= self.short:
                session = self.blocks
        return torch.from_numpy(session.run(None, arrays)[0])

    def _crossing(self, lengths: list[int]) -> int:
        """The most tokens, of those tried, up to which the blocks are faster."""
        longest = 0
        for length in lengths:
            ids = np.ones((1, length), dtype=np.int64)
            self.short = 0
            exact = self._best(ids)
            self.short = length
            if self._best(ids) >= exact:
                break
            longest = length
        return longest

    def _best(self, ids: np.ndarray) -> float:
        times = []
        for _ in range(4):
            begin = time.perf_counter()
            self(input_ids=ids)
            times.append(time.perf_counter() - begin)
        return min(times)
