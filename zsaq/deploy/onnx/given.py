"""What a caller gives a graph: arrays of the types that it reads, checked where ONNX Runtime looks at nothing."""

from pathlib import Path
from typing import Any, Final, final

import numpy as np
from torch import Tensor

NEUTRAL: Final = {"attention_mask": 1, "decoder_attention_mask": 1, "token_type_ids": 0}  # as if none were given
TYPES: Final = {"tensor(int64)": (np.int64, "iub"), "tensor(float)": (np.float32, "f")}  # and numpy's kinds for them


@final
class Given:
    """Inputs of the graph in `file`, whose `types` ONNX Runtime tells, and whose `facts` its export does: how
    many tokens of a row have `positions` and `below` which number they are, by input, and at which lengths to time it
    (`tokens`). Raises ValueError for a graph of other types, and for facts of text that do not tell."""

    def __init__(self, file: Path, types: dict[str, str], facts: dict[str, Any]) -> None:
        if not TYPES.keys() >= {*types.values()}:
            raise ValueError(f"{file} is no graph of zsaq, which reads {' and '.join(TYPES)}: export the student again")
        self.file, self.types = file, types
        self.tokens, self.positions, self.below = counted(file, facts) if "input_ids" in types else (0, {}, {})

    def __call__(self, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
        """Arrays by the graph's names; text without a mask or token types has ones and zeros. What is None is not
        given.

        Raises ValueError for inputs that the graph does not have, unless the student's answer is the same without them,
        for types that are no numbers of its own kind, for tokens that the table has no row for, for more of them than
        the table of positions has rows for, and for none.
        """
        arrays = {name: plain(name, value) for name, value in inputs.items() if value is not None}
        others = arrays.keys() - self.types.keys()
        if strange := sorted(n for n in others if n not in NEUTRAL or bool((arrays[n] != NEUTRAL[n]).any())):
            reads = f"{self.file} reads {', '.join(self.types)}"
            raise ValueError(f"{reads}; {strange[0]} is none of them: leave it out, or run the student, zsaq.load(DIR)")
        if (ids := arrays.get("input_ids")) is not None:
            arrays = {name: np.full_like(ids, value) for name, value in NEUTRAL.items()} | arrays
        return {name: self.checked(name, arrays[name]) for name in self.types if name in arrays}

    def checked(self, name: str, array: np.ndarray) -> np.ndarray:
        """The array as the graph reads it."""
        want, kinds = TYPES[self.types[name]]
        if array.dtype.kind not in kinds:
            raise ValueError(f"{self.file} takes {name} of {np.dtype(want)}; these are {array.dtype}")
        array = array.astype(want, copy=False)
        if name.endswith("input_ids") and array.ndim == 2:
            length = array.shape[1]
            if length > (most := self.positions.get(name, length)):
                raise ValueError(f"{name} has {length} tokens a row; the model has positions for {most}: cut them")
            if not length:
                raise ValueError(f"{name} has 0 tokens a row: give 1 or more")
        rows = self.below.get(name)
        if rows is not None and (beyond := array[(array < 0) | (array >= rows)]).size:
            raise ValueError(f"{name} holds {beyond[0]}, and the model knows 0 to {rows - 1}: take its own tokenizer")
        return array


def counted(file: Path, facts: dict[str, Any]) -> tuple[int, dict[str, int], dict[str, int]]:
    """`tokens`, `positions` and `below` of an export of text, as `to_onnx` writes them."""
    tokens, positions, below = facts.get("tokens"), facts.get("positions"), facts.get("below")
    counts: list[Any] = [None]
    if isinstance(positions, dict) and isinstance(below, dict) and "input_ids" in below:
        counts = [tokens, *positions.values(), *below.values()]
    if not all(type(count) is int and count > 0 for count in counts):
        raise ValueError(f"{file.parent} does not tell which tokens its graph takes: export the student again")
    return facts["tokens"], facts["positions"], facts["below"]


def plain(name: str, value: Any) -> np.ndarray:
    """A tensor, an array or nested lists as an array; floats of 16 bits in 32."""
    if isinstance(value, Tensor):
        return (value.detach().float() if value.is_floating_point() else value.detach()).cpu().numpy()
    try:
        return np.asarray(value)
    except ValueError:
        raise ValueError(f"{name} is no array: its rows are of several lengths; pad them") from None
