"""The ascending side of SAM-SGA: the generator climbs where student and teacher disagree."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedModel

from zsaq.language.models import Vocabulary, known_task_kind, output_layer, token_table
from zsaq.language.soft_text import SoftText, soft
from zsaq.language.text import Partner, Text
from zsaq.language.text_generator import TextGenerator
from zsaq.quant.codes import wide
from zsaq.sentence import pooling_of
from zsaq.train.embeddings import cosines
from zsaq.train.optim import NotFinite, adamw
from zsaq.train.state import Tensors
from zsaq.train.trainer import Divergence
from zsaq.train.widening import widened


@final
class Ascent:
    """The generator's steps: SGA of ZSAQ (Zhu et al. 2023, arXiv 2310.13315), an `Adversary`.

    `ascend` climbs min(D, ceiling) - fluency * KL(G || G_0) + diversity * H, where D is the disagreement of teacher and
    student on soft tokens of the newest of `text`, G_0 the generator at the start and H the entropy of the batch (see
    `entropy`). A weight of 0 switches a term off. G_0 is `reference` where such a model is at hand (it is read alone),
    the generator with LoRA switched off, or a frozen copy, which fluency 0 saves.

    `lr` is AdamW's, whose states are in 8 bits with `eight_bit`; `top` and `chunk` go to `soft`. With several processes
    the generators start alike and average their gradients. Raises ValueError for a generator whose logits are not the
    output layer of its last hidden state, and see `ascent_optimizer`.
    """

    def __init__(
        self,
        text: TextGenerator,
        teacher: PreTrainedModel,
        *,
        reference: PreTrainedModel | None = None,
        lr: float = 1e-4,
        fluency: float = 1.0,
        diversity: float = 1.0,
        ceiling: float = 2.0,
        top: int = 64,
        chunk: int = 512,
        eight_bit: bool = False,
    ) -> None:
        self.text, self.table = text, wide(token_table(teacher).weight.detach())
        embeds = known_task_kind(teacher) == "embedding"
        self.pooling = pooling_of(teacher.name_or_path) if embeds else None
        self.fluency, self.diversity, self.ceiling = fluency, diversity, ceiling
        self.top, self.chunk = top, chunk
        generator = text.generator
        self.lora = generator._hf_peft_config_loaded
        self.trained = [p for p in generator.parameters() if p.requires_grad]
        self.optimizer = ascent_optimizer(generator, lr, eight_bit)
        with widened(generator):
            check_head(generator, text.vocabulary)
        own = self.lora or not fluency
        self.reference = generator if own else reference or copy.deepcopy(generator).requires_grad_(False)
        with torch.no_grad(), widened(generator):
            text.bridge.fit(self.soft(generator, text.newest))

    def state_dict(self) -> dict[str, Any]:
        return {"generator": Tensors(self.text.generator).state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        Tensors(self.text.generator).load_state_dict(state_dict["generator"])
        self.optimizer.load_state_dict(state_dict["optimizer"])

    def soft(self, model: PreTrainedModel, text: Text, support: Tensor | None = None) -> SoftText:
        return soft(model, text, self.text.vocabulary, top=self.top, chunk=self.chunk, support=support)

    def ascend(self, divergence: Divergence) -> dict[str, float]:
        """One step of gradient ascent. `divergence` must let gradients through teacher and student to `inputs_embeds`.

        `soft` bounds the generator's part; a causal teacher's answers are as large as its vocabulary: 2.2 GiB at the
        peak for 8 rows of 128 tokens and 50,257 words, in proportion to rows and tokens. Only the generator's gradients
        are computed. Returns the terms, the gradient's norm before the clip at 1, and the share of distinct words and
        word pairs in the newest text. Raises NotFinite if anything is not.
        """
        with widened(self.text.generator, self.reference):
            return self.climb(divergence)

    def climb(self, divergence: Divergence) -> dict[str, float]:
        source, newest = self.text, self.text.newest
        text = newest.rows(torch.randint(len(newest), (source.batch_size,), generator=source.rng))
        written = self.soft(source.generator, text)
        content, mask = source.bridge.embed(written), text.mask
        if source.layout.text_pair:
            partner = Partner.of(mask, source.rng)
            batch = source.layout.place_soft((content, partner.take(content)), (mask, partner.mask), self.table)
        else:
            batch = source.layout.place_soft((content,), (mask,), self.table)
        disagreement, answer = divergence(batch)
        terms = {"disagreement": disagreement}
        loss = -disagreement.clamp(max=self.ceiling)
        if self.fluency:
            terms["fluency"] = kl(written, self.before(written))
            loss = loss + self.fluency * terms["fluency"]
        if self.diversity:
            terms["diversity"] = self.variety(answer, batch["attention_mask"])
            loss = loss - self.diversity * terms["diversity"]
        metrics = {name: term.item() for name, term in terms.items()}
        grads = torch.autograd.grad(loss, self.trained, allow_unused=True)
        gradients = [(p, g) for p, g in zip(self.trained, grads, strict=True) if g is not None]
        if dist.is_available() and dist.is_initialized():  # one generator on all processes
            for _, g in gradients:
                dist.all_reduce(g.div_(dist.get_world_size()))
        norm = torch.stack([g.float().norm() for _, g in gradients]).norm()
        metrics["generator_gradient"] = norm.item()
        if not all(map(torch.isfinite, (loss, norm))):
            raise NotFinite(
                f"the generator's step is not finite ({metrics}); lower its learning rate or the ceiling, or take "
                "another generator"
            )
        for p, g in gradients:
            p.grad = g * (1.0 / norm.clamp(min=1.0))
        self.optimizer.step()
        self.optimizer.zero_grad()
        source.replays = True
        return {**metrics, "distinct_1": distinct(newest, 1), "distinct_2": distinct(newest, 2)}

    def variety(self, answer: Tensor, mask: Tensor) -> Tensor:
        """How varied a batch looks to the teacher, in nats, by its answer."""
        return entropy(answer, mask) if self.pooling is None else spectral_entropy(self.pooling(answer, mask))

    @torch.no_grad()
    def before(self, written: SoftText) -> Tensor:
        """Log probabilities [N, L, K] of the same support under the generator at the start."""
        with adapters_off(self.reference) if self.lora else nullcontext():
            return self.soft(self.reference, written.text, written.ids).log_probs


def ascent_optimizer(generator: PreTrainedModel, lr: float, eight_bit: bool = False) -> torch.optim.Optimizer:
    """AdamW without decay on what the generator trains; its states in 8 bits through bitsandbytes if asked.

    Raises ValueError if nothing of the generator is trained, or if bitsandbytes is asked for and not installed.
    """
    trained = [p for p in generator.parameters() if p.requires_grad]
    if not trained:
        raise ValueError("nothing of the generator is trained: all its parameters are frozen")
    return adamw(trained, lr, eight_bit)


@contextmanager
def adapters_off(model: PreTrainedModel) -> Iterator[None]:
    model.disable_adapters()
    try:
        yield
    finally:
        model.enable_adapters()


def check_head(model: PreTrainedModel, vocabulary: Vocabulary) -> None:
    """Raises ValueError if the logits are not the output layer of the last hidden state (capped or scaled)."""
    probe = vocabulary.printable[:4].view(1, -1).to(model.device)
    with torch.no_grad():
        state = model.base_model(input_ids=probe).last_hidden_state
        direct = output_layer(model)(state)
        if not torch.allclose(direct, model(input_ids=probe).logits, rtol=1e-3, atol=1e-3):
            raise ValueError(
                f"the logits of {type(model).__name__} are more than its output layer; take another generator"
            )


def kl(written: SoftText, reference: Tensor) -> Tensor:
    """KL(G || G_0) over the support, mean over the positions of the text; in nats. `reference` [N, L, K] log probs."""
    each = (written.log_probs.exp() * (written.log_probs - reference)).sum(-1)
    return each[written.text.mask].mean()


def entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """How varied a batch looks to the teacher, in nats: the entropy of its mean prediction.

    `logits` [B, C] or [B, L, V] with `mask` [B, L]. For one number [B, 1] the entropy of a Gaussian of the batch's
    variance, 0.5 log(2 pi e var).
    """
    logits = logits.float()
    if logits.shape[-1] == 1:
        return 0.5 * (2 * torch.pi * torch.e * logits.var(unbiased=False).clamp_min(1e-12)).log()
    mean = torch.softmax(logits[mask.bool()] if logits.ndim == 3 else logits, -1).mean(0)
    return torch.special.entr(mean).sum()


def spectral_entropy(vectors: Tensor) -> Tensor:
    """The same of embeddings [B, d]: the entropy of the eigenvalues of K / B, K their cosines (Friedman and Dieng 2023,
    arXiv 2210.02410); 0 where all point the same way, log B where none has to do with another."""
    values = torch.linalg.eigvalsh(cosines(vectors) / len(vectors))
    return torch.special.entr(values.clamp_min(1e-12)).sum()


def distinct(text: Text, n: int) -> float:
    """Share of different n-grams among all; 0 if no row holds one (Li et al. 2016, arXiv 1510.03055)."""
    grams = [tuple(row[i : i + n]) for row in text.lists() for i in range(len(row) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0
