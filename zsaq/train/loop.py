"""How a loop runs, whatever it trains, and on which processes; all that knows how Accelerate was launched."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedType, broadcast_object_list
from torch import nn

from zsaq.quant.sharded import is_sharded
from zsaq.train.amounts import check_counts
from zsaq.train.logging import say
from zsaq.train.pair import Batch

Schedule = Literal["constant", "linear", "cosine"]


def processes(trackers: Sequence[str] = (), **options: Any) -> Accelerator:
    """Accelerate's Accelerator over all processes that were launched, `options` as it takes them.

    On a machine without GPU Accelerate takes each of torchrun's processes for the only one, and all would do the whole
    work and write the same files; here they share it on the CPU. `trackers`: Accelerate's, by name. Raises ValueError
    for one that is not installed.
    """
    have = [tracker.value for tracker in get_available_trackers()]
    if absent := [name for name in trackers if name not in have]:
        raise ValueError(
            f"trackers is {list(trackers)}; {absent} cannot be imported: pip install it, or choose of {have}"
        )
    if "ACCELERATE_DYNAMO_BACKEND" in os.environ and "MASTER_PORT" in os.environ and "WORLD_SIZE" not in os.environ:
        say(
            "accelerate launch was asked for several processes and has started this one alone, as it does without "
            "--multi_gpu or --use_fsdp; on a machine without GPUs start them by torchrun --nproc_per_node"
        )
    on_cpu = not torch.accelerator.is_available() and int(os.environ.get("WORLD_SIZE", "1")) > 1
    return Accelerator(cpu=on_cpu, log_with=list(trackers) or None, **options)


@dataclass
class Loop:
    """How a loop runs, whatever it trains.

    `accumulate`: micro-batches a step; `schedule` of the learning rate, after a linear rise over `warmup`, a share of
    the steps, from 0 at the first of them; `folder`: where JSON lines go; `every`: steps between two lines of progress.
    With N processes each reads its own batches and gradients are averaged. Mixed precision is the accelerator's "no" or
    "bf16"; "fp16" is refused, its scaler cannot look twice. For memory (docs/memory.md): `recompute` computes the
    student's blocks again in the backward pass (gradient checkpointing), `eight_bit` keeps AdamW's states in 8 bits, by
    bitsandbytes. `shared`: all processes read the same batches, and each takes its rows of them, so that the student is
    the one of a single process, but for the order of sums.

    Raises ValueError for what cannot be, and where Accelerate does not do what it was launched for.
    """

    accelerator: Accelerator = field(default_factory=lambda: processes())
    accumulate: int = 1
    schedule: Schedule = "linear"
    warmup: float = 0.1
    folder: Path | None = None
    every: int = 20
    recompute: bool = False
    eight_bit: bool = False
    shared: bool = False

    def __post_init__(self) -> None:
        if self.accelerator.mixed_precision == "fp16":
            raise ValueError(
                "mixed precision is 'fp16', whose loss scaler SAM's two passes would break; use 'bf16' or 'no'"
            )
        check_counts(accumulate=self.accumulate, every=self.every)
        if not isinstance(self.warmup, Real) or not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is {self.warmup!r}; give a share of the steps, below 1")
        if self.schedule not in get_args(Schedule):
            raise ValueError(f"schedule is {self.schedule!r}; give one of {', '.join(get_args(Schedule))}")
        if self.folder is not None and not (isinstance(self.folder, str | os.PathLike) and str(self.folder)):
            raise ValueError(f"folder is {self.folder!r:.80}; give a path, or None to write nothing")
        self.folder = None if self.folder is None else Path(os.path.expanduser(self.folder))
        check_launched(self.accelerator)

    def part(self, batch: Batch) -> Batch:
        """This process's rows of a batch that all have, or all of it. Raises ValueError if they have not as many
        each."""
        count = self.accelerator.num_processes
        if not self.shared or count == 1:
            return batch
        sizes = {len(value) for value in batch.values()}
        if len(sizes) != 1 or (size := sizes.pop()) % count:
            raise ValueError(
                f"a batch of {sizes or size} rows cannot be shared by {count} processes: give as many rows as they "
                "divide, or leave shared off"
            )
        size, rank = size // count, self.accelerator.process_index
        return {name: value[rank * size : (rank + 1) * size] for name, value in batch.items()}

    def agreed(self, key: dict[str, Any]) -> dict[str, Any]:
        """The main process's, on all: what each holds of its own (its rank, say) makes no other runs of theirs."""
        keys = [key]
        if self.accelerator.num_processes > 1:
            broadcast_object_list(keys)
        return keys[0]


def check_launched(accelerator: Accelerator) -> None:
    """Raises ValueError for processes that do not know of each other, and for a sharding that is not ours to do."""
    count, kind = int(os.environ.get("WORLD_SIZE", "1")), accelerator.distributed_type
    if count > accelerator.num_processes:
        raise ValueError(
            f"{count} processes were launched, and this accelerator is alone, so that each would do the whole work: "
            "make it by zsaq.train.loop.processes(), or Accelerator(cpu=True) on a machine without GPUs"
        )
    if kind == DistributedType.DEEPSPEED:
        raise ValueError("DeepSpeed steps in its backward pass, where SAM cannot look twice: launch with --use_fsdp")
    wanted = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if wanted and kind != DistributedType.FSDP:
        raise ValueError(f"FSDP was asked for, and Accelerate does not shard on {kind.value}: it needs GPUs")
    if kind == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise ValueError("this is FSDP 1, which flattens parameters: launch with --fsdp_version 2")
    plugin: Any = accelerator.state.fsdp_plugin if kind == DistributedType.FSDP else None
    if plugin is not None and plugin.cpu_ram_efficient_loading:
        raise ValueError(
            "with fsdp_cpu_ram_efficient_loading only the main process would have the teacher's weights: launch with "
            "--fsdp_cpu_ram_efficient_loading false (recipes/fsdp.yaml)"
        )


def prepared(accelerator: Accelerator, student: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
    """Wrapped for several processes, or sharded with what the optimizer holds; once sharded, it stays so. Autocast
    stays ours: it must stand around the step for SAM to leave it."""
    if is_sharded(student):
        return student
    if accelerator.is_fsdp2:
        # Learned scales and SAM's step need float32; where autocast is wanted it does the rest.
        plugin: Any = accelerator.state.fsdp_plugin
        plugin.mixed_precision_policy = None
        model = accelerator.prepare(student, optimizer)[0]
        del accelerator._models[-1], accelerator._optimizers[-1]  # they would be kept as long as the accelerator
        return model
    native, accelerator.native_amp = accelerator.native_amp, False
    try:
        return accelerator.prepare_model(student)
    finally:
        accelerator.native_amp = native
