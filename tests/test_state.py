"""States of a run on the disk and back, and streams that find their place."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from zsaq.train.state import Tensors, read_state, write_state
from zsaq.train.streams import Counted, Mapped, drawn, stream_of


def test_a_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    tie, wide = torch.randn(3), torch.randn(4, 6)
    plain = {
        "half": torch.ones(2, dtype=torch.bfloat16), "flags": torch.tensor([True]), "empty": torch.empty(0),
        "number": torch.tensor(3.0).double(),
    }  # fmt: skip
    state = {"a": [1, 2.5, float("inf"), None, True, "é"], 3: (tie, {"b": tie, "view": wide[:, ::2]}), **plain}
    write_state(tmp_path / "state.safetensors", state)
    again = read_state(tmp_path / "state.safetensors")
    assert again["a"] == state["a"] and list(again) == list(state) and isinstance(again[3], tuple)
    pairs = [(again[3][0], tie), (again[3][1]["view"], wide[:, ::2]), *((again[name], plain[name]) for name in plain)]
    for one, other in pairs:
        assert one.dtype == other.dtype and torch.equal(one, other)
    with pytest.raises(ValueError, match="a set is in the state"):
        write_state(tmp_path / "x.safetensors", {"a": {1}})
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]


def test_numbers_of_numpy_come_back_as_they_were(tmp_path: Path) -> None:
    numbers = [np.float64(1e-3), np.float32(0.1), np.float16(0.1), np.int64(-(2**62)), np.uint8(255), np.bool_(True)]
    write_state(tmp_path / "state.safetensors", numbers)
    again = read_state(tmp_path / "state.safetensors")
    assert again == numbers and [type(each) for each in again] == [type(each) for each in numbers]
    for wrong in (np.complex64(1), np.ones(2), np.longdouble(1)):
        with pytest.raises(ValueError, match="is in the state of a run; give numbers"):
            write_state(tmp_path / "x.safetensors", [wrong])


def test_tensors_of_a_module_go_back_in_place() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    net[0].register_buffer("hidden", torch.ones(1), persistent=False)
    state = {name: value.clone() for name, value in Tensors(net).state_dict()["tensors"].items()}
    weight = net[0].weight
    with torch.no_grad():
        for tensor in Tensors(net).held().values():
            tensor.zero_()
    Tensors(net).load_state_dict({"tensors": state, "seen": []})
    assert net[0].weight is weight and all(torch.equal(t, state[n]) for n, t in Tensors(net).held().items())
    assert "0.hidden" in state


def test_streams_find_their_place(tmp_path: Path) -> None:
    batches = [{"x": torch.tensor(i)} for i in range(4)]
    stream = stream_of(batches)
    assert stream_of(stream) is stream and len(drawn(stream, 3)) == 3
    again = Counted(iter(batches))
    again.load_state_dict(stream.state_dict())
    assert int(next(again)["x"]) == 3
    with pytest.raises(ValueError, match="the batches end after 2, and the run had read 3"):
        Counted(iter(batches[:2])).load_state_dict(stream.state_dict())
    doubled = Mapped(lambda batch: {"x": 2 * batch["x"]}, batches)
    doubled.load_state_dict({"drawn": 2})
    assert int(next(doubled)["x"]) == 4
