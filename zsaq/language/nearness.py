"""How near a student came to its teacher, on text that the teacher wrote itself and no student has read."""

import copy
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final, final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from zsaq.language.asking import Asking
from zsaq.language.job import TextJob
from zsaq.language.size import Size
from zsaq.language.writing import fast_dtype
from zsaq.quant.config import QuantConfig
from zsaq.train.widening import widened

ROWS, TOKENS, AT_ONCE = 12, 64, 4  # of that text: some seconds for a model of 135 million parameters on one core
OTHER: Final = 2**32  # what its seed is above the run's
POOR: Final = 0.55  # agreement below which a remedy is told: SmolLM2-135M keeps .61 when it is rounded to w4a16g32


@final
@dataclass(frozen=True)
class Nearness:
    """On `tokens` of text: mean KL(teacher || student) in nats a token, and the share of tokens of which both think the
    same one likeliest."""

    kl: float
    agreement: float
    tokens: int

    @classmethod
    def of(cls, teacher: Tensor, student: Tensor) -> "Nearness":
        """Of logits [..., V]."""
        t, s = (each.flatten(0, -2).float().log_softmax(-1) for each in (teacher, student))
        kl = (t.exp() * (t - s)).sum(-1).mean()
        return cls(float(kl), float((t.argmax(-1) == s.argmax(-1)).float().mean()), len(t))

    @classmethod
    def mean(cls, parts: "list[Nearness]") -> "Nearness":
        """Of all their tokens."""
        tokens = sum(part.tokens for part in parts)
        kl, agreement = (sum(getattr(p, name) * p.tokens for p in parts) / tokens for name in ("kl", "agreement"))
        return cls(kl, agreement, tokens)

    def on(self, what: str) -> str:
        """In words; `what`: of which text the tokens are."""
        near = f"agreement with the teacher {self.agreement:.1%}, KL {self.kl:.4g} nats a token"
        return f"{near}, on {self.tokens} tokens {what}"

    def __str__(self) -> str:
        return self.on("that it wrote itself and no student has read")


@torch.no_grad()
def nearness(job: TextJob, student: nn.Module, seed: int) -> Nearness | None:
    """Of a causal teacher and its student, on text of another seed than the run's; None for other teachers, without the
    teacher's tokenizer and where the student's answers are not finite. No data is read, and nothing is chosen by it."""
    if job.kind != "causal" or job.tokenizer is None or not isinstance(student, PreTrainedModel):
        return None
    own = copy.copy(job)
    own.corpus, own.chunks, own.asking, own.generator = None, None, Asking(), (job.start, job.tokenizer)
    own.max_length = min(TOKENS, job.max_length)
    length = min(own.max_length, job.length[1])
    own.length = (length, length)
    own.batch_size, own.style = ROWS, {"refresh": 1}
    with widened(job.start), quick(job.start):
        batch = next(own.text(OTHER + seed))
        some = [{key: value[i : i + AT_ONCE] for key, value in batch.items()} for i in range(0, ROWS, AT_ONCE)]
        with quick(student):
            parts = [
                Nearness.of(*(model(**rows).logits[rows["attention_mask"].bool()] for model in (job.start, student)))
                for rows in some
            ]
    whole = Nearness.mean(parts)
    return whole if whole.kl == whole.kl and whole.kl < float("inf") else None


@contextmanager
def quick(model: PreTrainedModel) -> Iterator[None]:
    """Inside, a model in 16 bits on a processor that calculates in 32 has 32; what it holds is the same before and
    after."""
    dtypes = {
        name: each.dtype
        for name, each in itertools.chain(model.named_parameters(), model.named_buffers())
        if each.is_floating_point()
    }
    wide = fast_dtype(model.device) == torch.float32 and any(dtype.itemsize < 4 for dtype in dtypes.values())
    if wide:
        model.float()
    try:
        yield
    finally:
        if wide:
            for name, each in itertools.chain(model.named_parameters(), model.named_buffers()):
                if name in dtypes:
                    each.data = each.data.to(dtypes[name])


def remedy(config: QuantConfig, near: Nearness, size: Size | None = None) -> str | None:
    """What would bring a student nearer that came no nearer than POOR; None where it did. `size`: by which the bits of
    its layers were chosen."""
    if near.agreement >= POOR or config.weight is None:
        return None
    said = f"agreement with the teacher is {near.agreement:.0%}: "
    if size is not None:
        less = [] if size.group is not None and size.group <= 32 else [f"groups of 32 ({replace(size, group=32)})"]
        less += [] if size.inputs == 16 else [f"inputs in floats ({replace(size, inputs=16, static=False)})"]
        others = ", ".join([*less, "effort='best' (--effort best), which trains"])
        return f"{said}a larger size than {size} would come nearer, and so would {others}"
    if not isinstance(config.weight.per, int) or config.weight.per > 32:
        bits = max(config.weight.bits, 3)
        return f"{said}groups of 32 (w{bits}a16g32) would come nearer" + (
            "" if bits > 3 else ", and 4 bits (w4a16g32) nearer still"
        )
    if config.weight.bits < 4:
        return f"{said}4 bits (w4a16g32) would come nearer, and so would effort='best' (--effort best), which trains"
    if config.input is not None:
        return f"{said}inputs in floats (w{config.weight.bits}a16g{config.weight.per}) would come nearer"
    return f"{said}effort='best' (--effort best), which trains, would come nearer, and so would more bits"
