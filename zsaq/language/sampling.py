"""Token by token: rows that a causal language model goes on with, with a key-value cache that finished rows leave."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from zsaq.language.telling import Tell, nobody
from zsaq.train.optim import NotFinite
from zsaq.train.widening import widened


@final
@dataclass(frozen=True)
class Continued:
    """What was written behind one opening: `ids`, the token that ended it included; `cut`, whether its length alone
    did; `log_p`, the log probability of all of it, in nats."""

    ids: list[int]
    cut: bool
    log_p: float


@final
class Memory:
    """What a causal language model has read of some rows: its cache of keys and values, or, where it hands on none
    (Mamba, RWKV), their tokens, all of which it reads again for each that follows."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.cache: Any = None
        self.tokens: Tensor | None = None

    def answer(self, current: Tensor, mask: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """The logits [N, V] behind the tokens `current` [N, L], which come behind those before; `mask` and `positions`
        [N, all] are of all tokens."""
        ids = current if self.tokens is None else torch.cat([self.tokens, current], 1)
        more = {} if mask is None else {"attention_mask": mask}
        more |= {} if positions is None else {"position_ids": positions[:, -ids.shape[1] :]}
        out = self.model(input_ids=ids, past_key_values=self.cache, use_cache=True, **more)
        self.cache = getattr(out, "past_key_values", None)
        self.tokens = ids if self.cache is None else None
        return out.logits[:, -1]

    def keep(self, rows: Tensor) -> bool:
        """Forget all but these rows, whose numbers they are; whether it could."""
        if self.tokens is not None:
            self.tokens = self.tokens[rows]
            return True
        select = getattr(self.cache, "batch_select_indices", None)
        return select is not None and (select(rows) or True)


@torch.no_grad()
def continued(
    model: PreTrainedModel, opened: Sequence[Sequence[int]], limits: Sequence[int], *, never: Tensor, stops: Tensor,
    heat: float | Tensor = 1.0, rng: torch.Generator, pad: int = 0, tell: Tell = nobody,
) -> list[Continued]:  # fmt: skip
    """What `model` writes behind each of `opened`, token ids that are read first: until one of `stops` [V] bool, or for
    `limits` tokens.

    `never` [V] bool are not written, a stop not as the first. `heat`: the temperature, or one for each row [N]. `rng`
    lives on the CPU, and the same seed writes the same. `tell` hears after every token which share is done. Raises
    NotFinite for a model whose answers are not finite.
    """
    n, device, width = len(opened), model.device, max(map(len, opened))
    current = torch.tensor([[pad] * (width - len(ids)) + list(ids) for ids in opened], device=device)
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in opened], device=device)
    written: list[list[int]] = [[] for _ in range(n)]
    total, rows, memory = torch.zeros(n), torch.arange(n), Memory(model)
    cut, going = torch.ones(n, dtype=torch.bool), torch.ones(n, dtype=torch.bool)
    last, never, ends = torch.tensor(limits), never.to(device), stops.to(device)
    takes_positions = "position_ids" in inspect.signature(model.forward).parameters
    heats = heat.to(device) if isinstance(heat, Tensor) else None
    with widened(model):
        for place in range(max(limits)):
            positions = (mask.cumsum(1) - 1).clamp_min(0) if takes_positions else None
            logits = memory.answer(current, mask, positions).float()
            if not logits.amax(-1).isfinite().all():
                raise NotFinite(
                    f"the answers of the generator {type(model).__name__} are not finite: take another generator"
                )
            logits.masked_fill_(never if place else never | ends, -torch.inf)
            chance = torch.rand(2, n, 1, generator=rng, dtype=torch.float64)[:, rows].to(device)
            if heats is not None:
                current = draw(logits / heats[rows.to(device), None], chance)
            else:
                current = draw(logits if heat == 1 else logits / heat, chance)
            log_p = logits.gather(1, current)[:, 0] - logits.logsumexp(-1)
            for row, token, value in zip(rows.tolist(), current[:, 0].tolist(), log_p.tolist(), strict=True):
                if going[row]:
                    written[row].append(token)
                    total[row] += value
                    if stops[token]:
                        going[row], cut[row] = False, False
            going &= last > place + 1
            if not going.any():
                break
            tell((place + 1) / max(limits))
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            held = going[rows]
            if 8 * int(held.sum()) <= 7 * len(rows) and memory.keep(held.nonzero()[:, 0].to(device)):
                rows, current, mask = rows[held], current[held.to(device)], mask[held.to(device)]
    tell(1.0)
    return [Continued(*row) for row in zip(written, cut.tolist(), total.tolist(), strict=True)]


def draw(logits: Tensor, chance: Tensor) -> Tensor:
    """Sample from softmax(logits) [N, V] with uniform numbers `chance` [2, N, 1] float64 -> ids [N, 1].

    First a run of 256 tokens by its share, then a token in it by its own: no sum over the whole vocabulary is kept.
    """

    def pick(shares: Tensor, chance: Tensor) -> Tensor:
        reached = shares.cumsum(-1, dtype=torch.float64)  # in double precision a share of 0 can never be hit
        return torch.searchsorted(reached, chance * reached[:, -1:], right=True)

    short = -logits.shape[1] % 256
    shares = F.pad(torch.softmax(logits, -1), (0, short)).unflatten(1, (-1, 256))
    run = pick(shares.sum(-1), chance[0])
    return 256 * run + pick(shares[torch.arange(len(run), device=run.device), run[:, 0]], chance[1])
