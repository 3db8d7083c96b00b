"""Runs that are stopped after a step, and go on."""

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import zsaq
from zsaq.train.checkpoint import Checkpoint
from zsaq.train.stopping import Stopped

SIGTERM = 15


def digest(model: nn.Module) -> str:
    """Of every tensor of a model, bit for bit."""
    sha = hashlib.sha256()
    for name, tensor in sorted({**model.state_dict(), **dict(model.named_buffers())}.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.detach().contiguous().numpy().tobytes())
    return sha.hexdigest()


@contextmanager
def stopped_after(step: int | None) -> Iterator[list[str]]:
    """Inside, the process is asked to stop during the `step`th step of a run; the stages of all steps that it takes."""
    taken: list[str] = []
    after = Checkpoint.after

    def counted(self: Checkpoint, stage: str, *rest: Any) -> None:
        taken.append(stage)
        if len(taken) == step:
            self.stopper.heard(SIGTERM, None)
        after(self, stage, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "after", counted)
        yield taken


def goes_on(make: Callable[[], Mapping[str, Any]], folder: Path, stops: Callable[[int], set[int]]) -> list[str]:
    """Asserts that a run which is stopped after any of the steps `stops(count)` ends as the one that is not; the stages
    of its steps."""
    whole = digest(zsaq.quantize(**make()))
    with stopped_after(None) as taken:
        assert digest(zsaq.quantize(**make(), checkpoint=folder / "whole")) == whole, "keeping changes nothing"
    for step in sorted(stops(len(taken))):
        kept = folder / str(step)
        with stopped_after(step) as first, pytest.raises(Stopped) as stop:
            zsaq.quantize(**make(), checkpoint=kept, resume=True)
        assert stop.value.code == 128 + SIGTERM
        with stopped_after(None) as rest:
            again = zsaq.quantize(**make(), checkpoint=kept, resume=True)
        assert first + rest == taken, "no step is taken twice, and none is left out"
        assert digest(again) == whole, f"stopped after step {step} of {len(taken)}, in {taken[step - 1]}"
        shutil.rmtree(kept)
    return taken
