"""The ascending side of SAM-SGA: a generator that writes for the student, and climbs where it disagrees."""

import copy
import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Self, final

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zsaq.language.bridge import Bridge, Kind, bridge_for
from zsaq.language.layout import Layout
from zsaq.language.models import Vocabulary, output_layer, token_table
from zsaq.language.text import Partner, Text, similar, text_pairs
from zsaq.language.writing import SoftText, ascent_optimizer, soft, write
from zsaq.train.pair import Batch

Divergence = Callable[[Batch], tuple[Tensor, Tensor]]  # a batch -> (disagreement, the teacher's logits)


@final
class TextGenerator:
    """An endless iterator of batches of ids for the student, and `ascend` for the generator.

    For every `refresh` batches new texts are written, each of which is used once. After the first ascent only a share
    `fresh` of what the batches hold is new; the rest, so that students do not forget what the generator has left, comes
    from a replay buffer of the `capacity` newest texts. Rows of similar length share a batch. Without any ascent this
    is LLM-QAT's sampled text.

    `ascend` climbs min(D, ceiling) - fluency * KL(G || G_0) + diversity * H, where D is the disagreement of teacher and
    student on soft tokens, G_0 the generator at the start (a frozen copy; LoRA switched off) and H the entropy of the
    batch (see `entropy`). A weight of 0 switches a term off, and fluency 0 saves the copy.

    Texts are sampled from the begin token on: with one declared case (MiniLM on SST-2, W2A8) that came closer to the
    teacher than LLM-QAT's uniform first token and greedy start (KL 0.110 against 0.125), which `greedy` and
    `uniform_start` switch on. With several processes the generators start alike and average their gradients; give each
    process a seed of its own.

    `table` [V, d] is the teacher's; `length`, `greedy`, `temperature`, `uniform_start` go to `write`, `top` and `chunk`
    to `soft`. The generator is used in eval mode, on one device with the teacher. The same seed gives the same run.
    """

    def __init__(
        self,
        generator: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        bridge: Bridge,
        layout: Layout,
        table: Tensor,
        *,
        batch_size: int = 32,
        length: int | tuple[int, int] = (4, 40),
        greedy: tuple[int, int] = (0, 0),
        temperature: float = 1.0,
        uniform_start: bool = False,
        refresh: int = 10,
        fresh: float = 0.75,
        capacity: int = 20_000,
        lr: float = 1e-4,
        fluency: float = 1.0,
        diversity: float = 1.0,
        ceiling: float = 2.0,
        top: int = 64,
        chunk: int = 512,
        eight_bit: bool = False,
        seed: int = 0,
    ) -> None:
        if not 0 < fresh <= 1 or min(batch_size, refresh) < 1 or capacity < refresh * batch_size:
            raise ValueError(
                f"fresh is {fresh}; it must lie above 0 and at most at 1, batch_size {batch_size} and refresh "
                f"{refresh} must be at least 1, and capacity {capacity} at least their product"
            )
        self.generator, self.bridge, self.layout, self.table = generator.eval(), bridge, layout, table.detach()
        self.vocabulary = Vocabulary.of(generator, tokenizer)
        self.batch_size, self.refresh, self.fresh = batch_size, refresh, fresh
        self.style = {"length": length, "greedy": greedy, "temperature": temperature, "uniform_start": uniform_start}
        self.fluency, self.diversity, self.ceiling = fluency, diversity, ceiling
        self.top, self.chunk = top, chunk
        self.rng = torch.Generator().manual_seed(seed)
        self.lora = generator._hf_peft_config_loaded
        self.reference = copy.deepcopy(generator).requires_grad_(False) if fluency and not self.lora else generator
        self.trained = [p for p in generator.parameters() if p.requires_grad]
        self.optimizer = ascent_optimizer(generator, lr, eight_bit)
        self.buffer: deque[list[int]] = deque(maxlen=capacity)
        self.ready: list[Text] = []
        self.ascended, self.started = False, False
        check_head(generator, self.vocabulary)
        self.renew()
        with torch.no_grad():
            bridge.fit(self.soft(self.generator, self.newest))

    @classmethod
    def of(
        cls,
        generator: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        teacher: PreTrainedModel,
        teacher_tokenizer: PreTrainedTokenizerBase,
        *,
        kind: Kind = "auto",
        max_length: int = 128,
        text_pair: bool = False,
        **options: Any,
    ) -> Self:
        """A text generator for a teacher: bridge of that `kind`, layout of one text or a `text_pair`, on the teacher's
        device."""
        bridge = bridge_for(tokenizer, teacher_tokenizer, teacher, kind).to(teacher.device)
        layout = Layout.of(teacher_tokenizer, min(max_length, teacher_tokenizer.model_max_length), text_pair)
        generator.to(teacher.device)  # type: ignore[arg-type]
        return cls(generator, tokenizer, bridge, layout, token_table(teacher).weight, **options)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        if not self.ready:
            if self.started:
                self.renew()
            self.started = True
            self.ready = self.gather()
        text = self.ready.pop()
        return self.layout.place(*(text_pairs(text, self.rng) if self.layout.text_pair else (text,)))

    def gather(self) -> list[Text]:
        """The next `refresh` batches: the newest texts, and what is missing from those before them."""
        missing = self.refresh * self.batch_size - len(self.translated)
        past = len(self.buffer) - len(self.translated)
        text = self.translated
        if missing:
            old = [self.buffer[i] for i in torch.randperm(past, generator=self.rng)[:missing].tolist()]
            text = Text.cat([text, Text.of(old).to(text.ids.device)])
        return [text.rows(index) for index in similar(text.mask.sum(1), self.batch_size, self.rng)]

    def renew(self) -> None:
        """Let the generator write; `newest` in its vocabulary, `translated` and the buffer in the teacher's."""
        n = self.refresh * self.batch_size
        rows = math.ceil(self.fresh * n) if self.ascended else n
        self.newest = write(self.generator, self.vocabulary, rows, rng=self.rng, **self.style)
        self.translated = self.bridge.ids(self.newest)
        self.buffer.extend(self.translated.lists())

    def soft(self, model: PreTrainedModel, text: Text, support: Tensor | None = None) -> SoftText:
        return soft(model, text, self.vocabulary, top=self.top, chunk=self.chunk, support=support)

    def ascend(self, divergence: Divergence) -> dict[str, float]:
        """One step of gradient ascent. `divergence` must let gradients through teacher and student to `inputs_embeds`.

        `soft` bounds the generator's part; a causal teacher's answers are as large as its vocabulary: 2.2 GiB at the
        peak for 8 rows of 128 tokens and 50,257 words, in proportion to rows and tokens. Only the generator's gradients
        are computed. Returns the terms, the gradient's norm before the clip at 1, and the share of distinct words and
        word pairs in the newest text. Raises ValueError if anything is not finite.
        """
        text = self.newest.rows(torch.randint(len(self.newest), (self.batch_size,), generator=self.rng))
        written = self.soft(self.generator, text)
        content, mask = self.bridge.embed(written), text.mask
        if self.layout.text_pair:
            partner = Partner.of(mask, self.rng)
            batch = self.layout.place_soft((content, partner.take(content)), (mask, partner.mask), self.table)
        else:
            batch = self.layout.place_soft((content,), (mask,), self.table)
        disagreement, logits = divergence(batch)
        terms = {"disagreement": disagreement}
        loss = -disagreement.clamp(max=self.ceiling)
        if self.fluency:
            terms["fluency"] = kl(written, self.before(written))
            loss = loss + self.fluency * terms["fluency"]
        if self.diversity:
            terms["diversity"] = entropy(logits, batch["attention_mask"])
            loss = loss - self.diversity * terms["diversity"]
        told = {name: term.item() for name, term in terms.items()}
        grads = torch.autograd.grad(loss, self.trained, allow_unused=True)
        found = [(p, g) for p, g in zip(self.trained, grads, strict=True) if g is not None]
        if dist.is_available() and dist.is_initialized():  # one generator on all processes
            for _, g in found:
                dist.all_reduce(g.div_(dist.get_world_size()))
        norm = torch.stack([g.float().norm() for _, g in found]).norm()
        told["generator_gradient"] = norm.item()
        if not all(map(torch.isfinite, (loss, norm))):
            raise ValueError(f"the generator's step is not finite ({told}); lower its learning rate or the ceiling")
        for p, g in found:
            p.grad = g * (1.0 / norm.clamp(min=1.0))
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ascended = True
        return {**told, "distinct_1": distinct(self.newest, 1), "distinct_2": distinct(self.newest, 2)}

    @torch.no_grad()
    def before(self, written: SoftText) -> Tensor:
        """Log probabilities [N, L, K] of the same support under the generator at the start."""
        with adapters_off(self.reference) if self.lora else nullcontext():
            return self.soft(self.reference, written.text, written.ids).log_probs


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
    if logits.shape[-1] == 1:
        return 0.5 * (2 * torch.pi * torch.e * logits.var(unbiased=False).clamp_min(1e-12)).log()
    mean = torch.softmax(logits[mask.bool()] if logits.ndim == 3 else logits, -1).mean(0)
    return torch.special.entr(mean).sum()


def distinct(text: Text, n: int) -> float:
    """Share of different n-grams among all; 0 if no row holds one (Li et al. 2016, arXiv 1510.03055)."""
    grams = [tuple(row[i : i + n]) for row in text.lists() for i in range(len(row) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0
