"""What a generator could have written: its distribution over each position, with a gradient and little memory."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from zsaq.language.models import Vocabulary, output_layer
from zsaq.language.text import Text

NEVER = -1e4  # the logit of what may not be written: probability 0, and still a number


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
            supports = [
                _support(head(s).float(), t, vocabulary.content, top)
                for s, t in zip(states.split(chunk), sampled.split(chunk), strict=True)
            ]
        ids = text.ids[..., None].repeat(1, 1, supports[0].shape[1])
        ids[text.mask] = torch.cat(supports)
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
