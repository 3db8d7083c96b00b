"""What a launch asked for, and what it got."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from zsaq import Loop
from zsaq.train.loop import check_launched, processes


def accelerator(kind: DistributedType, version: int = 2, efficient: bool = False) -> Any:
    plugin = SimpleNamespace(fsdp_version=version, cpu_ram_efficient_loading=efficient)
    fsdp2 = kind == DistributedType.FSDP and version == 2
    state = SimpleNamespace(fsdp_plugin=plugin)
    return SimpleNamespace(distributed_type=kind, num_processes=2, is_fsdp2=fsdp2, state=state)


@pytest.mark.parametrize("size", ["2", "8"])
def test_processes_that_do_not_know_of_each_other_are_refused(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = Accelerator(cpu=True)
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(ValueError, match=f"{size} processes were launched, and this accelerator is alone"):
        Loop(alone)


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        (DistributedType.DEEPSPEED, {}, "DeepSpeed steps in its backward pass"),
        (DistributedType.MULTI_CPU, {}, "FSDP was asked for, and Accelerate does not shard on MULTI_CPU"),
        (DistributedType.NO, {}, "FSDP was asked for, and Accelerate does not shard on NO"),
        (DistributedType.FSDP, {"version": 1}, "launch with --fsdp_version 2"),
        (DistributedType.FSDP, {"efficient": True}, "--fsdp_cpu_ram_efficient_loading false"),
    ],
)
def test_a_sharding_that_cannot_be_is_refused(kind: DistributedType, options, words: str, monkeypatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match=words):
        check_launched(accelerator(kind, **options))
    check_launched(accelerator(DistributedType.FSDP))


def test_one_process_where_several_were_asked_for_is_told(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    processes()
    assert capsys.readouterr().err == ""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for name, value in (("ACCELERATE_DYNAMO_BACKEND", "NO"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(name, value)
    processes()
    assert "asked for several processes and has started this one alone" in capsys.readouterr().err


def test_a_batch_that_processes_cannot_share_is_refused() -> None:
    loop = Loop(Accelerator(cpu=True), shared=True)
    batch = {"input_ids": torch.zeros(5, 3), "labels": torch.arange(5)}
    assert loop.part(batch) is batch
    loop.accelerator = accelerator(DistributedType.MULTI_CPU)
    with pytest.raises(ValueError, match="a batch of 5 rows cannot be shared by 2 processes"):
        loop.part(batch)
    with pytest.raises(ValueError, match=r"a batch of \{4, 5\} rows cannot be shared"):
        loop.part(batch | {"labels": torch.arange(4)})
    loop.accelerator.process_index = 1  # pyright: ignore[reportAttributeAccessIssue]
    assert loop.part({"labels": torch.arange(4)})["labels"].tolist() == [2, 3]
