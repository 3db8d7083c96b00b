"""The generator: any causal language model that writes text, and shows gradients what it could have written."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from zsaq.language.models import Vocabulary, longest, output_layer
from zsaq.language.text import Text

NEVER = -1e4  # the logit of what may not be written: probability 0, and still a number


def load_generator(path_or_id: str, lora: bool = False) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in eval mode, and its tokenizer. With `lora` only low-rank adapters of it are trained.

    Raises ValueError if LoRA is asked for and peft is not installed.
    """
    model = AutoModelForCausalLM.from_pretrained(path_or_id, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path_or_id)
    if lora:
        try:
            from peft import LoraConfig
        except ImportError:
            raise ValueError('LoRA needs peft: pip install "zsaq[lora]", or leave lora off') from None
        model.add_adapter(LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
    return model.eval(), tokenizer


def ascent_optimizer(generator: PreTrainedModel, lr: float, eight_bit: bool = False) -> torch.optim.Optimizer:
    """AdamW without decay on what the generator trains; its states in 8 bits through bitsandbytes if asked.

    Raises ValueError if nothing of the generator is trained, or if bitsandbytes is asked for and not installed.
    """
    trained = [p for p in generator.parameters() if p.requires_grad]
    if not trained:
        raise ValueError("nothing of the generator is trained: all its parameters are frozen")
    if not eight_bit:
        return torch.optim.AdamW(trained, lr, weight_decay=0.0)
    try:
        from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError('8-bit AdamW needs bitsandbytes: pip install "zsaq[bnb]", or leave eight_bit off') from None
    return AdamW8bit(trained, lr, weight_decay=0.0)


@torch.no_grad()
def write(
    model: PreTrainedModel,
    vocabulary: Vocabulary,
    n: int,
    length: int | tuple[int, int],
    *,
    rng: torch.Generator,
    greedy: tuple[int, int] = (3, 5),
    temperature: float = 1.0,
    uniform_start: bool = True,
    batch_size: int = 256,
) -> Text:
    """`n` texts by the hybrid of LLM-QAT (Liu et al. 2023, arXiv 2305.17888, section 2.1).

    Each text begins with a token drawn uniformly from the printable ones (`uniform_start`), goes on greedily for
    greedy[0]..greedy[1] tokens and is sampled from there until it ends by itself or by its length: `length`, or drawn
    from length[0]..length[1]. `rng` lives on the CPU; the same seed writes the same text. Special tokens are never
    written, no text is empty. Raises ValueError for numbers that cannot be, and for greedy words after nothing but the
    begin token, which would make all texts alike.
    """
    low, high = (length, length) if isinstance(length, int) else length
    limit = longest(model)
    if not 1 <= low <= high or (limit is not None and high >= limit):
        raise ValueError(f"length is {length}; it must lie in 1..{'' if limit is None else limit - 1}, lower end first")
    if not 0 <= greedy[0] <= greedy[1] or temperature <= 0 or n < 1:
        raise ValueError(f"n {n}, greedy {greedy}, temperature {temperature}: give n >= 1, 0 <= first <= last, and > 0")
    if greedy[1] and not uniform_start:
        raise ValueError(f"greedy {greedy} without uniform_start would begin all texts alike; give greedy=(0, 0)")
    parts = []
    for size in [batch_size] * (n // batch_size) + [n % batch_size] * (n % batch_size > 0):
        limits = torch.randint(low, high + 1, (size,), generator=rng)
        safe = torch.randint(greedy[0], greedy[1] + 1, (size,), generator=rng) + uniform_start
        first = torch.randint(len(vocabulary.printable), (size, uniform_start), generator=rng)
        parts.append(_write(model, vocabulary, vocabulary.printable[first], limits, safe, temperature, rng))
    return Text.cat(parts, vocabulary.pad)


def _write(
    model: PreTrainedModel,
    vocabulary: Vocabulary,
    begin: Tensor,
    limits: Tensor,
    safe: Tensor,
    heat: float,
    rng: torch.Generator,
) -> Text:
    """Texts that start with `begin` [N, 0 or 1] and hold `limits` [N] tokens at most, the first `safe` [N] greedy."""
    (n, start), device = begin.shape, model.device
    ids = torch.full((n, int(limits.max())), vocabulary.pad)
    ids[:, :start] = begin
    ends = torch.tensor(vocabulary.ends, dtype=torch.int64)
    closed = (~vocabulary.content).nonzero()[:, 0]
    but_end = closed[~torch.isin(closed, ends.to(device))]
    rows, lengths, going = torch.arange(n), limits.clone(), torch.ones(n, dtype=torch.bool)
    current, cache = torch.cat([torch.full((n, 1), vocabulary.bos), begin], 1).to(device), None
    for position in range(start, ids.shape[1]):
        going &= limits > position
        if not going.any():
            break
        if cache is not None and 2 * int(going.sum()) <= len(rows):  # finished rows leave the cache
            held = going[rows]
            cache.batch_select_indices(held.nonzero()[:, 0].to(device))
            rows, current = rows[held], current[held.to(device)]
        out = model(input_ids=current, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        logits = out.logits[:, -1].float().index_fill_(1, but_end if position else closed, -torch.inf)
        chance = torch.rand(2, n, 1, generator=rng, dtype=torch.float64)[:, rows].to(device)
        careful = (position < safe[rows]).to(device)
        current = draw(logits if heat == 1 else logits / heat, chance)
        if careful.any():
            current = torch.where(careful[:, None], logits.argmax(-1, keepdim=True), current)
        token = current[:, 0].cpu()
        ended = rows[torch.isin(token, ends) & going[rows]]
        lengths[ended], going[ended] = position, False
        ids[rows[going[rows]], position] = token[going[rows]]
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    return Text(ids.to(device), mask.to(device))


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


@final
@dataclass(frozen=True)
class SoftText:
    """A text and what its writer could have written instead.

    For each position the support `ids` [N, L, K] int64 (the token that stands there first), `log_probs` [N, L, K]
    normalised over the support, and the state `hidden` [N, L, d] that the token was drawn from.
    """

    text: Text
    ids: Tensor
    log_probs: Tensor
    hidden: Tensor


def soft(
    model: PreTrainedModel,
    text: Text,
    vocabulary: Vocabulary,
    *,
    top: int = 64,
    temperature: float = 1.0,
    chunk: int = 512,
    support: Tensor | None = None,
) -> SoftText:
    """One teacher-forced pass of the generator over its own text; nothing flows through the sampling.

    The distribution of a position comes from the state before it and is softmax(logits / temperature), renormalised
    over the sampled token and the `top` likeliest others that may stand in a text; with top >= V that is the softmax
    itself. Another model's `support` [N, L, K] can be given instead. K = top + 1.

    Memory: with B L positions, at most chunk * V logits live at once (searched without gradients, then only the
    support's logits are computed, checkpointed). Peak beyond the body's activations, in bytes: 12 chunk V for the
    logits or what replaces them in the backward pass, 12 B L K kept, 8 V d for the gradient of the head. B = 32,
    L = 128, V = 50272, K = 65, d = 512: 309 MB + 3 MB + 206 MB, where plain logits, their softmax and the gradient
    take 12 B L V = 2.5 GB.
    """
    before = torch.cat([torch.full_like(text.ids[:, :1], vocabulary.bos), text.ids[:, :-1]], 1)
    seen = torch.cat([torch.ones_like(text.mask[:, :1]), text.mask[:, :-1]], 1)
    hidden = model.base_model(input_ids=before, attention_mask=seen.long(), use_cache=False).last_hidden_state
    head = output_layer(model)
    states, sampled = hidden[text.mask], text.ids[text.mask]
    if support is None:
        with torch.no_grad():
            found = [
                _support(head(s).float(), t, vocabulary.content, top)
                for s, t in zip(states.split(chunk), sampled.split(chunk), strict=True)
            ]
        ids = text.ids[..., None].repeat(1, 1, found[0].shape[1])
        ids[text.mask] = torch.cat(found)
    else:
        ids = support
    log_probs = torch.full(ids.shape, NEVER, dtype=torch.float32, device=ids.device)
    parts = [
        checkpoint(_log_probs, head, s, i, temperature, use_reentrant=False, preserve_rng_state=False)
        for s, i in zip(states.split(chunk), ids[text.mask].split(chunk), strict=True)
    ]
    return SoftText(text, ids, log_probs.masked_scatter(text.mask[..., None], torch.cat(parts)), hidden)


def _support(logits: Tensor, sampled: Tensor, content: Tensor, top: int) -> Tensor:
    """[P, V], [P] -> [P, K]: the sampled token, then the likeliest; the sampled one again where none is left."""
    logits[:, ~content] = -torch.inf
    value, ids = logits.topk(min(top, logits.shape[1]), -1)
    return torch.cat([sampled[:, None], torch.where(value.isinf(), sampled[:, None], ids)], 1)


def _log_probs(head: nn.Linear, states: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """[P, d], [P, K] -> log softmax over the K [P, K]; a repetition of the first id has no share."""
    weight, bias = head.weight, head.bias
    if ids.shape[1] * states.shape[1] < len(weight):  # rows of the head are smaller than its logits
        logits = torch.bmm(F.embedding(ids, weight), states[..., None])[..., 0]
        logits = logits if bias is None else logits + F.embedding(ids, bias[:, None])[..., 0]
    else:
        logits = head(states).gather(1, ids)
    again = F.pad(ids[:, 1:] == ids[:, :1], (1, 0))
    return torch.log_softmax((logits.float() / temperature).masked_fill(again, NEVER), -1)
