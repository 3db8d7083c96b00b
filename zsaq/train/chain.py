"""The calls of a model's blocks, one block after the other: each block's inputs are what the one before it answered, so
the whole costs one pass, and not half a pass for every block.

That holds where blocks follow each other with nothing in between, and what else they are called with (masks, positions)
does not depend on them. A chain looks whether it does, on a row of the first batch; where it does not, every block's
calls come from a pass that starts anew.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, final

import torch
from torch import Tensor, nn

from zsaq.train.calls import (
    Args,
    Calls,
    Reached,
    call_of,
    channels_of,
    collected,
    duplicate,
    first_of,
    masks_of,
    replaced,
    with_tensors,
    without_cache,
)
from zsaq.train.pair import Batch, run_model


@final
class Chain:
    """The calls of `blocks` [name], in the order in which `model` calls them, over all `batches`.

    `calls(number)` are those of that block, (args, kwargs) for each batch; `answered(number)` has to be told when it is
    done with. `forms`: how the blocks answer, see `answer_forms`; None where they are no chain. `masks`: which
    positions count (`masks_of`, which raises ValueError). `like`: a chain of blocks that are alike, as of a student's
    teacher, which has tried that. `device`: where calls are moved to, from where the states are kept. With `last`, what
    the last block answers is kept too, as `answers`. Memory: the states of all batches before one block.
    """

    def __init__(
        self, model: nn.Module, blocks: Sequence[str], batches: Sequence[Batch], *, like: "Chain | None" = None,
        device: torch.device | None = None, last: bool = False,
    ) -> None:  # fmt: skip
        self.model, self.batches, self.device, self.last = model, batches, device, last
        self.blocks = [model.get_submodule(name) for name in blocks]
        self.done, self.answers = 0, list[Tensor]()
        if like is not None:
            forms = like.forms
        else:
            forms = answer_forms(model, self.blocks, {key: value[:1] for key, value in batches[0].items()})
        self.forms, self.masks = forms, masks_of(model, self.blocks, batches)
        self.held = [handed_over(model, self.blocks, batch, forms) for batch in batches] if forms is not None else []

    def calls(self, number: int) -> Sequence[Args]:
        """Of the block `number`; those before it that were not told to be `answered` answer as they are now."""
        if self.forms is None:
            return [call_of(self.model, self.blocks[number], batch, answers=False)[:2] for batch in self.batches]
        while self.done < number:
            self.answered(self.done)
        return Moved([held[number] for held in self.held], self.device)

    @torch.no_grad()
    def answered(self, number: int) -> None:
        """The block `number` is as it stays: its answers, and no more its inputs, are kept for the next."""
        if self.forms is None or number < self.done:
            return
        assert number == self.done
        ends = number + 1 == len(self.blocks)
        for held in self.held:
            args, kwargs = duplicate(moved(held[number], self.device))
            answer = first_of(self.blocks[number](*args, **kwargs)) if self.last or not ends else None
            held[number] = ((), {})
            if answer is None:
                continue
            answer = answer if self.device is None else answer.cpu()
            if ends:
                self.answers.append(answer)
            else:
                held[number + 1] = replaced(held[number + 1], answer)
        self.done += 1


Twin = tuple[Sequence[Args], Sequence[Tensor]]


def twin_of(teacher: Chain, number: int) -> Twin:
    """What the block `number` of a teacher is called with, and what it answers; its chain keeps its `last` answers."""
    if teacher.forms is None:
        pairs = [call_of(teacher.model, teacher.blocks[number], batch, answers=True) for batch in teacher.batches]
        return [(args, kwargs) for args, kwargs, _ in pairs], [first_of(answer) for *_, answer in pairs]
    before = teacher.calls(number)
    teacher.answered(number)
    if number + 1 == len(teacher.blocks):
        return before, teacher.answers
    return before, [first_of(a or tuple(k.values())) for a, k in teacher.calls(number + 1)]


def beside(student: Chain, twin: Twin, number: int, budget: int, device: torch.device) -> Calls:
    """What the block `number` of a student and its twin of the teacher are called with, and what the twin answers."""
    channels = channels_of(student.blocks[number], twin[1][0])
    return collected(*twin, student.calls(number), budget, device, student.masks, channels)


@final
class Moved(Sequence[Args]):
    """Calls that are on a device while they are looked at; None leaves them where they are."""

    def __init__(self, calls: Sequence[Args], device: torch.device | None) -> None:
        self.each, self.device = calls, device

    def __len__(self) -> int:
        return len(self.each)

    def __getitem__(self, index: Any) -> Any:
        return moved(self.each[index], self.device)


def moved(value: Any, device: torch.device | None) -> Any:
    """The structure with its tensors on the device."""
    return value if device is None else with_tensors(value, lambda tensor: tensor.to(device))


@torch.no_grad()
def as_called(model: nn.Module, names: Sequence[str], batch: Batch, idle: Collection[str] = ()) -> list[str]:
    """The names of blocks in the order of their first calls in a pass of a row of the batch. Those of the `idle` that
    it does not reach are left out. Raises ValueError for others."""
    blocks = {name: model.get_submodule(name) for name in names}
    called: dict[nn.Module, int] = {}

    def reached(block: nn.Module, args: tuple) -> None:
        called.setdefault(block, len(called))

    handles = [block.register_forward_pre_hook(reached) for block in blocks.values()]
    try:
        run_model(model, {key: value[:1] for key, value in batch.items()} | without_cache(model))
    finally:
        for handle in handles:
            handle.remove()
    if missed := [name for name, block in blocks.items() if block not in called and name not in idle]:
        raise ValueError(f"the blocks {missed[:4]} are not reached by a forward pass; leave them out")
    in_reach = [name for name in names if blocks[name] in called]
    return sorted(in_reach, key=lambda name: called[blocks[name]])


def names_of(blocks: Sequence[tuple[str, nn.Module]]) -> list[str]:
    """The names of (name, module). Raises ValueError for anything else."""
    for each in blocks:
        if not (isinstance(each, tuple | list) and len(each) == 2 and isinstance(each[0], str)):
            raise ValueError(f"blocks has {each!r:.80}; give pairs, as [('layer1', student.get_submodule('layer1'))]")
    return [name for name, _ in blocks]


@torch.no_grad()
def answer_forms(model: nn.Module, blocks: Sequence[nn.Module], batch: Batch) -> list[int] | None:
    """How many values each block answers in a tuple (0: a tensor); None where the blocks are no chain on this batch."""
    called: list[tuple[nn.Module, Args]] = []
    answered: list[Any] = []
    copies: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def copied(tensor: Tensor) -> Tensor:
        """One copy of what all blocks share, such as a mask."""
        key = id(tensor), 0 if tensor.is_inference() else tensor._version
        if key not in copies:
            copies[key] = tensor, tensor.clone()
        return copies[key][1]

    def reached(block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        called.append((block, with_tensors((args, kwargs), copied)))

    def left(block: nn.Module, args: tuple, answer: Any) -> None:
        answered.append(with_tensors(answer, copied))

    # Copies, since what stands between two blocks, or a block itself, may write into what it is given.
    handles = [block.register_forward_pre_hook(reached, with_kwargs=True) for block in blocks]
    handles += [block.register_forward_hook(left) for block in blocks]
    try:
        run_model(model, {**batch, **without_cache(model)})
    finally:
        for handle in handles:
            handle.remove()
    if [block for block, _ in called] != list(blocks):
        return None
    seen = [call for _, call in called]
    forms = [len(answer) if isinstance(answer, tuple) else 0 for answer in answered]
    try:
        firsts = [first_of(args or tuple(kwargs.values())) for args, kwargs in seen[1:]]
        if not all(torch.equal(first, first_of(answer)) for first, answer in zip(firsts, answered[:-1], strict=True)):
            return None
        handed = handed_over(model, blocks, batch, forms)
    except Exception:  # noqa: BLE001 (a model may want anything else of what a block answers)
        return None
    alike = all(same(told, call) for told, call in zip(handed, seen, strict=True))
    return forms if alike else None


@torch.no_grad()
def handed_over(model: nn.Module, blocks: Sequence[nn.Module], batch: Batch, forms: Sequence[int]) -> list[Args]:
    """What each block is called with, in a pass in which none computes: each hands on its first value. Only the first
    block is left its own, the others' are made of answers later."""
    calls: list[Args] = []

    def stub(form: int) -> Callable[..., Any]:
        def hand_on(*args: Any, **kwargs: Any) -> Any:
            state = first_of(args or tuple(kwargs.values()))
            calls.append((args, kwargs) if not calls else replaced((args, kwargs), None))
            if len(calls) == len(blocks):
                raise Reached
            return (state, *[None] * (form - 1)) if form else state

        return hand_on

    with instead(blocks, [stub(form) for form in forms]), suppress(Reached):
        run_model(model, {**batch, **without_cache(model)})
    return calls


@contextmanager
def instead(blocks: Sequence[nn.Module], forwards: Sequence[Callable[..., Any]]) -> Iterator[None]:
    """Inside, each block computes by the function given for it."""
    own = [vars(block).get("forward") for block in blocks]
    for block, forward in zip(blocks, forwards, strict=True):
        vars(block)["forward"] = forward
    try:
        yield
    finally:
        for block, before in zip(blocks, own, strict=True):
            del vars(block)["forward"]
            if before is not None:
                vars(block)["forward"] = before


def same(told: Args, seen: Args) -> bool:
    """Whether two calls are equal in all but their first value."""
    return equal(replaced(told, None), replaced(seen, None))


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(map(equal, one, other))
    return type(one) is type(other) and (isinstance(one, nn.Module) or one == other)
