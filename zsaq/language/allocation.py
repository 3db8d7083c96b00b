"""Mixed precision by size: which layer gets how many bits, where the whole may take so much and no more.

What rounding costs is taken as half the squared error of a layer's weights times the mean of their Fisher information
(`zsaq.language.information`): the second-order increase of KL(teacher || student), linear in the error as HIGGS has it
(Malinovskii et al. 2024, arXiv 2411.17525), whose coefficients are measured here in one pass back for all layers at
once. The bits are then chosen by dynamic programming over sizes in which everything counts.
"""

import copy
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Final, NamedTuple

import torch
from accelerate import PartialState
from torch import nn
from transformers import PreTrainedModel

from zsaq.language.information import information
from zsaq.language.job import TextJob
from zsaq.language.size import Size
from zsaq.quant.codes import groups
from zsaq.quant.config import QuantConfig
from zsaq.quant.experts import weighted
from zsaq.quant.grid import Grid
from zsaq.quant.heads import token_tables
from zsaq.quant.kinds import kind_of
from zsaq.quant.layers import weight_rows
from zsaq.quant.plan import make_plan
from zsaq.quant.quantizer import Quantizer
from zsaq.quant.ranges import RANGES
from zsaq.quant.reach import copied
from zsaq.quant.sizes import matrix_bytes
from zsaq.train.logging import say

WIDTHS: Final = (2, 3, 4, 5, 6, 8)
GROUP: Final = 64  # entries that share a scale; fewer where that divides no layer's inputs
SEED: Final = 0  # of that text: which bits are chosen does not hang on a run's seed
TEXTS: Final = 16  # rows of the model's own text that are read
SAMPLE: Final = 128  # rows of a weight that its error is measured on
CELLS: Final = 20_000  # sizes that are told apart
ENTRY: Final = 92  # bytes of a tensor in a file's header, besides its name


class Choice(NamedTuple):
    """A width of a layer: what it takes, and what it costs."""

    bits: int
    bytes: int
    cost: float


def allocate(layers: Sequence[Sequence[Choice]], budget: int) -> list[Choice]:
    """A choice for each layer, of which each has some by rising bytes and falling cost: the least sum of costs that
    `budget` bytes allow. Exact where the sizes on the way from the least lie on at most CELLS steps, else these are
    rounded up to so many and what that leaves is spent after. No layer could then be raised within the budget."""
    least = sum(choices[0].bytes for choices in layers)
    assert least <= budget
    extra = [[choice.bytes - choices[0].bytes for choice in choices] for choices in layers]
    room = min(budget - least, sum(sizes[-1] for sizes in extra))
    unit = max(math.gcd(*(size for sizes in extra for size in sizes)), -(-room // CELLS), 1)
    cells = [[-(-size // unit) for size in sizes] for sizes in extra]
    best, picks = torch.zeros(room // unit + 1, dtype=torch.float64), []
    for choices, steps in zip(layers, cells, strict=True):
        tries = torch.full((len(choices), len(best)), math.inf, dtype=torch.float64)
        for row, choice, step in zip(tries, choices, steps, strict=True):
            if step < len(best):
                row[step:] = best[: len(best) - step] + choice.cost
        best, pick = tries.min(0)
        picks.append(pick.to(torch.int8))
    at, chosen = len(best) - 1, []
    for steps, pick in zip(reversed(cells), reversed(picks), strict=True):
        chosen.append(int(pick[at]))
        at -= steps[chosen[-1]]
    return raised(layers, chosen[::-1], budget)


def raised(layers: Sequence[Sequence[Choice]], chosen: list[int], budget: int) -> list[Choice]:
    """The choices, raised one after the other where it helps most for its bytes, until nothing fits."""
    left = budget - sum(choices[k].bytes for choices, k in zip(layers, chosen, strict=True))
    while True:
        steps = []
        for number, (choices, k) in enumerate(zip(layers, chosen, strict=True)):
            for now, after in zip(choices[k:], choices[k + 1 : k + 2], strict=False):
                if (size := after.bytes - now.bytes) <= left:
                    steps.append(((now.cost - after.cost) / size, -number, size))
        if not steps:
            return [choices[k] for choices, k in zip(layers, chosen, strict=True)]
        _, number, size = max(steps)
        chosen[-number] += 1
        left -= size


def configured(job: TextJob, config: "str | QuantConfig | Size") -> QuantConfig:
    """A configuration as it is, from its text, or chosen by size, once for a job. Raises ValueError for anything else,
    and as `mixed` does."""
    if (size := Size.of(config)) is None:
        return QuantConfig.given(config)  # pyright: ignore[reportArgumentType]
    if size not in job.sized:
        job.sized[size] = mixed(job, size)
    return job.sized[size]


def mixed(job: TextJob, size: Size) -> QuantConfig:
    """The configuration that costs least within `size`: a rule with the bits of each layer, tables and the head of
    tokens among them, by its name. What was chosen is told.

    Raises ValueError for a model whose answers are no distribution, or not finite, or of which layers share a weight, a
    group that does not fit it, and a size that no bits reach.
    """
    if job.kind not in ("causal", "classification"):
        raise ValueError(
            f"{type(job.start).__name__} answers no distribution, by which bits could be chosen: give a configuration "
            "for all layers, such as w4a16"
        )
    state = PartialState()
    model = copied(job.start).float().eval().to(state.device)  # pyright: ignore[reportArgumentType]
    plan, modules = make_plan(model, base_of(model, size)), weighted(model)
    layers = {name: modules[name] for name in plan.chosen if name not in plan.tied}
    check_one_each(layers)
    grids = {name: own_grid(layer, plan.chosen[name]) for name, layer in layers.items()}
    floats = rest(model, layers)
    if size.static:
        floats += sum(range_bytes(name) for name in plan.chosen if kind_of(modules[name]) is not nn.Embedding)
    weights = sum(parameter.numel() for parameter in model.parameters())
    ends = [floats + sum(bytes_at(m, grid_of(grids[name], bits)) for name, m in layers.items()) for bits in (2, 8)]
    budget = size.bytes(weights)
    if not ends[0] <= budget <= ends[1]:
        reach = [f"{8 * end / weights:.2f} bits a weight ({end / 1e6:.1f} MB)" for end in ends]
        raise ValueError(
            f"{8 * budget / weights:.2f} bits a weight ({budget / 1e6:.1f} MB) are out of reach of "
            f"{type(model).__name__}: from 2 bits for every layer to 8 it takes {reach[0]} to {reach[1]}, scales "
            "and what stays in floats included"
        )
    own = own_job(job, model)
    batches, parameters = islice(own.text(SEED), 1), {name: m.weight for name, m in layers.items()}
    found = information(model, parameters, batches, SEED)  # pyright: ignore[reportArgumentType]
    job.asked = None if own.chunks is None else own.chunks.prompts
    options = [choices_of(layer, grids[name], found[name]) for name, layer in layers.items()]
    chosen = dict(zip(layers, allocate(options, budget - floats), strict=True))
    total = floats + sum(choice.bytes for choice in chosen.values())
    if state.is_main_process:
        say(f"bits by size: {total / 1e6:.1f} of {budget / 1e6:.1f} MB, {8 * total / weights:.3f} bits a weight")
        for line in told(chosen):
            say(line)
    rules = []
    for name, choice in chosen.items():
        part = "embedding" if kind_of(layers[name]) is nn.Embedding else "weight"
        own_config = dataclasses.replace(plan.chosen[name], rules=(), **{part: grid_of(grids[name], choice.bits)})
        rules.append((name, own_config))
    return dataclasses.replace(plan.config, rules=tuple(rules))


def check_one_each(layers: Mapping[str, nn.Module]) -> None:
    """Raises ValueError for different layers of one weight, of which each would be given bits of its own."""
    owners: dict[int, str] = {}
    for name, layer in layers.items():
        if (owner := owners.setdefault(id(layer.weight), name)) != name:
            raise ValueError(
                f"{owner} and {name} share a weight, which cannot have bits of its own for each: give each a copy of it"
            )


def own_job(job: TextJob, model: PreTrainedModel) -> TextJob:
    """The job of text that is written for it, TEXTS rows at once, where `model` stands for the teacher, also as the one
    that writes. A corpus is left to the methods that say so: nobody knows what is in it."""
    own = copy.copy(job)
    own.corpus = None
    own.teacher = own.start = model
    if not isinstance(job.generator, str) and job.generator[0] is job.start:
        own.generator = (model, job.generator[1])
    own.batch_size, own.style = TEXTS, {**job.style, "refresh": 1}
    return own


def base_of(model: PreTrainedModel, size: Size) -> QuantConfig:
    """Grids without their bits: all that has a quantized form, tables of tokens and their head among it."""
    tables, head = token_tables(model), model.get_output_embeddings()
    ends = [name for name, m in model.named_modules() if m in tables]
    if head is not None and all(head.weight is not table.weight for table in tables):
        ends += [name for name, m in model.named_modules() if m is head]
    every = make_plan(model, QuantConfig(Grid(), embedding=Grid(8)))
    columns = [weight_rows(m).shape[1] for name, m in weighted(model).items() if name in {*every.chosen, *ends}]
    per = size.group or math.gcd(GROUP, *columns)
    grid = Grid(4, per=per if per > 8 or size.group else "channel", scales="float16")
    config = QuantConfig(
        grid,
        None if size.inputs == 16 else Grid(size.inputs, per="tensor" if size.static else "token"),
        embedding=dataclasses.replace(grid, bits=8),
    )
    return dataclasses.replace(config, rules=tuple((name, config) for name in ends))


def own_grid(layer: nn.Module, config: QuantConfig) -> Grid:
    grid = config.embedding if kind_of(layer) is nn.Embedding else config.weight
    assert grid is not None
    return grid


def grid_of(grid: Grid, bits: int) -> Grid:
    return dataclasses.replace(grid, bits=bits, levels="half" if bits == 2 else "integer")


def bytes_at(layer: nn.Module, grid: Grid) -> int:
    rows, columns = weight_rows(layer).shape
    return matrix_bytes(rows, columns, grid)


def rest(model: nn.Module, layers: dict[str, nn.Module]) -> int:
    """Bytes of all else in the file, in float32 as a student that was trained has it, and of its header: an entry for
    each tensor, for codes and scales, and for what stands guard in the place of a packed weight."""
    packed = {id(layer.weight) for layer in layers.values()}
    bytes = ENTRY * (3 + 2 * len(layers)) + 2 * sum(map(len, layers))
    for name, tensor in model.state_dict(keep_vars=True).items():
        bytes += ENTRY + len(name) + (1 if id(tensor) in packed else 4 * tensor.numel())
    return bytes


def range_bytes(name: str) -> int:
    """Of a layer's static range of inputs: scale and zero."""
    return 2 * (ENTRY + len(f"{name}.input_quantizer.ranges.scale") + 4)


def choices_of(layer: nn.Module, grid: Grid, information: float) -> list[Choice]:
    """All widths of a layer, the error of each measured on some of its rows."""
    rows, found, cost = weight_rows(layer).detach(), list[Choice](), math.inf
    some = rows[:: max(1, len(rows) // SAMPLE)].float()
    for bits in WIDTHS:
        own = grid_of(grid, bits)
        q = Quantizer(own, RANGES["searched"](groups(some, own), own))(some)
        error = float((some - q).double().square().mean()) * rows.numel()
        cost = min(max(information, 1e-30) * error / 2, cost * (1 - 1e-6))  # falls, whatever was measured
        found.append(Choice(bits, bytes_at(layer, own), cost))
    return found


def told(chosen: dict[str, Choice]) -> list[str]:
    """A line for each kind of layer: how many have which bits."""
    kinds: dict[str, list[int]] = {}
    for name, choice in chosen.items():
        kinds.setdefault(re.sub(r"(?<![^.])\d+(?![^.])", "*", name), []).append(choice.bits)
    return [
        f"  {kind}: " + ", ".join(f"{bits.count(b)} at {b} bits" for b in sorted(set(bits)))
        for kind, bits in kinds.items()
    ]
