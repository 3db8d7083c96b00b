"""Students of which two processes hold a part each, and batches that they share, against one process."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, debug_launcher
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import load_file
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_leaves
from transformers.modeling_layers import GradientCheckpointingLayer

import toys
from toys_training import constant, plain, sgd
from zsaq import KL, SAM, Clip, HiddenStates, QuantConfig, distill, quantize_model, save
from zsaq.language.sam_sga import grid_step, with_learned_ranges
from zsaq.quant.layers import quant_layers
from zsaq.quant.ranges import static_ranges
from zsaq.quant.sharded import is_sharded
from zsaq.train.state import stateful

STEPS = 3
CASES = {  # family, configuration, optimizer
    "plain": ("llama", "w4a8", "adamw"),
    "sam": ("llama", "w2a8", "sam"),
    "again": ("llama", "w4a8g8", "sam, again"),
    "transposed": ("gpt2", "w4a8e8", "sam"),
}


def run(case: str, folder: Path, shard: bool, writes: bool = True) -> None:
    """One student of a case, sharded block by block or whole, saved in `folder` with its curve."""
    family, bits, how = CASES[case]
    torch.manual_seed(0)
    teacher = getattr(toys, family)()
    student = quantize_model(teacher, with_learned_ranges(QuantConfig.parse(bits)))
    kind = next(type(module) for module in student.modules() if isinstance(module, GradientCheckpointingLayer))
    if shard:
        for block in [module for module in student.modules() if isinstance(module, kind)]:
            fully_shard(block)
        fully_shard(student)
        assert is_sharded(student)
    unit = grid_step(student)
    inner: Any = plain(student, unit / 50) if how == "adamw" else sgd(student)
    optimizer: Any = SAM(Clip(inner, 1.0), student, unit / 5) if "sam" in how else Clip(inner, 1.0)
    given = [{k: v for k, v in b.items() if k != "token_type_ids"} for b in toys.batches(2 * STEPS, pad=True)]
    loop = constant(shared=True, accumulate=2, recompute="again" in how, folder=folder / "log" if writes else None)
    distill(student, teacher, given, KL() + HiddenStates(kind), optimizer, STEPS, loop)
    assert all(layer.offset is None for _, layer in quant_layers(student)) and not static_ranges(student)
    if shard:
        assert_kept(student, optimizer)
    save(student, folder / "student")
    (folder / f"unit{Accelerator().process_index}.json").write_text(json.dumps([unit, grid_step(student)]))


def assert_kept(student: nn.Module, optimizer: Any) -> None:
    """What this process has of both goes into a file and comes back in parts."""
    before = [p.full_tensor().detach() for p in student.parameters() if isinstance(p, DTensor)]
    for part in (stateful(student), stateful(optimizer)):
        state = part.state_dict()
        assert not [each for each in tree_leaves(state) if isinstance(each, DTensor)]
        part.load_state_dict(state)
    states = [v for each in optimizer.state.values() for v in each.values() if isinstance(v, torch.Tensor) and v.ndim]
    assert all(isinstance(value, DTensor) for value in states)
    after = [p.full_tensor().detach() for p in student.parameters() if isinstance(p, DTensor)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def both(folder: str, shard: bool) -> None:
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    for case in CASES:
        run(case, Path(folder, case), shard, accelerator.is_main_process)
    accelerator.wait_for_everyone()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    for case in CASES:
        (folder / case).mkdir()
        run(case, folder / case, False)
    return folder


@pytest.mark.parametrize("shard", [True, False], ids=["sharded", "shared"])
def test_two_processes_make_the_student_of_one(shard: bool, alone: Path, tmp_path: Path) -> None:
    for case in CASES:
        (tmp_path / case).mkdir()
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    debug_launcher(both, (str(tmp_path), shard), num_processes=2)
    for case in CASES:
        logs = [
            [json.loads(line) for line in (folder / case / "log" / "distill.jsonl").read_text().splitlines()]
            for folder in (alone, tmp_path)
        ]
        for one, two in zip(*logs, strict=True):
            names = {"loss", "KL", "HiddenStates", "lr", "norm", "gap", "cosine"} & set(one)
            assert {name: two[name] for name in names} == pytest.approx({n: one[n] for n in names}, rel=1e-4, abs=1e-6)
        one, two = (load_file(folder / case / "student" / "model.safetensors") for folder in (alone, tmp_path))
        assert one.keys() == two.keys() and all(one[name].dtype == two[name].dtype for name in one)
        for name, value in one.items():
            if name.endswith("codes"):
                assert float((value == two[name]).float().mean()) > 0.999, name
            else:
                assert torch.allclose(value.float(), two[name].float(), rtol=1e-4, atol=1e-6), name
        units = [json.loads((folder / case / "unit0.json").read_text()) for folder in (alone, tmp_path)]
        assert units[0] == pytest.approx(units[1], rel=1e-5)
