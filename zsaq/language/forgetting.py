"""What a release tells of the texts that its model was fine-tuned on, and a model that tells less.

Whoever has a model and its public base sees which tokens stood in its texts (`zsaq.language.fingerprint`), also where
the table is rounded. Rows that are the base's own tell nothing. Those that moved least, of words of a text or
two, such as names, are set back first: the model hardly needs them, and they are what should not be told.
"""

import copy
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zsaq.language.fingerprint import Fingerprint, split
from zsaq.language.layout import Layout
from zsaq.language.models import known_task_kind, printable, token_table
from zsaq.language.rows import Rows
from zsaq.language.text import Text
from zsaq.quant.config import QuantConfig
from zsaq.quant.grid import Grid
from zsaq.quant.layers import swap
from zsaq.quant.model import is_quantized
from zsaq.quant.positions import longest
from zsaq.train.pair import Batch
from zsaq.train.widening import widened

TEXTS: Final = 256  # on which models are compared, in batches of BATCH
BATCH: Final = 32
LENGTH: Final = (4, 40)
HALVINGS: Final = 8


@final
@dataclass(frozen=True)
class Forgotten:
    """`model`: the copy; `back`: how many of its `moved` tokens have the base's rows again; `agreement`: of its answers
    with the teacher's, on random words that the teacher was fine-tuned on; `told`: of the moved tokens, the share that
    a comparison with the base still finds."""

    model: PreTrainedModel
    moved: int
    back: int
    agreement: float
    told: float


def forget(
    teacher: PreTrainedModel, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, agreement: float = 0.99,
    seed: int = 0,
) -> Forgotten:  # fmt: skip
    """A copy of the teacher in which as many rows of tokens are the base's again as leave `agreement` of its answers:
    all that never moved, and of the others those that moved least.

    Answers are the class or next token, or a number's correlation. No text is read. Raises ValueError for a student,
    for an agreement that is no share, a model without such answers, and where the fingerprint gives no signal.
    """
    if not 0 < agreement <= 1:
        raise ValueError(f"agreement is {agreement}; give a share of the answers, as 0.99")
    if is_quantized(teacher):
        raise ValueError("a student's rows are codes, which stay: let the float teacher forget, and quantize that")
    if known_task_kind(teacher) in (None, "embedding"):
        kinds = "no classifier, regressor or causal language model"
        raise ValueError(f"{type(teacher).__name__} is {kinds}: its answers cannot be compared")
    found = Fingerprint.of(teacher, base)
    if found.silence is not None:
        raise ValueError(f"there is nothing to forget: {found.silence}")
    model = copy.deepcopy(teacher).eval()
    table, own = token_table(model), token_table(teacher).weight.detach()
    theirs = token_table(base).weight.detach()[: len(own)].to(own)
    order = torch.where(found.moved, found.movement, -1.0)[: len(theirs)].argsort()
    still, moved = int((~found.moved[: len(theirs)]).sum()), int(found.moved.sum())
    batches = random_words(found.moved, teacher, tokenizer, seed)
    wanted = answers(teacher, batches)

    def kept(count: int) -> float:
        """The agreement with so many of the moved rows set back."""
        rows = order[: still + count].to(own.device)
        with torch.no_grad():
            table.weight.copy_(own)
            table.weight[rows] = theirs[rows]
        return agreeing(wanted, answers(model, batches))

    low, high = 0, moved
    best = kept(moved)
    if best >= agreement:
        low = moved
    for _ in range(HALVINGS if low < moved else 0):
        middle = (low + high) // 2
        low, high = (middle, high) if kept(middle) >= agreement else (low, middle)
    best = kept(low)
    again = Fingerprint.of(model, base)
    return Forgotten(model, moved, low, best, float((again.moved & found.moved).sum()) / moved)


def told_in(bits: int, teacher: PreTrainedModel, base: PreTrainedModel) -> float:
    """The share of the moved tokens that a comparison with the base still finds where the table is rounded to `bits`, a
    scale for each row. Raises ValueError where there is no signal."""
    found = Fingerprint.of(teacher, base)
    if found.silence is not None:
        raise ValueError(found.silence)
    weight = token_table(teacher).weight.detach().float()
    table = nn.Embedding.from_pretrained(weight.clone())
    swap(table, QuantConfig(Grid(8), None, Grid(bits)))
    rows = Rows.of(table, token_table(base))
    bound, _ = split(rows)
    if bound is None:
        return 0.0
    return float((rows.movement > bound)[found.moved[: len(rows.movement)]].float().mean())


def random_words(moved: Tensor, teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int) -> list[Batch]:
    """TEXTS rows of tokens that moved, uniform and independent."""
    most = min(128, longest(teacher) or 128, tokenizer.model_max_length)
    layout, rng = Layout.of(tokenizer, most), torch.Generator().manual_seed(seed)
    words = printable(tokenizer)
    words = words[moved[words]] if bool(moved[words].any()) else words
    batches = []
    for _ in range(TEXTS // BATCH):
        lengths = torch.randint(LENGTH[0], LENGTH[1] + 1, (BATCH,), generator=rng).tolist()
        rows = [words[torch.randint(len(words), (n,), generator=rng)].tolist() for n in lengths]
        batches.append({name: part.to(teacher.device) for name, part in layout.place(Text.of(rows)).items()})
    return batches


@torch.inference_mode()
def answers(model: PreTrainedModel, batches: list[Batch]) -> Tensor:
    """What the model says to each text, or behind each of its tokens: a class, a token or a number."""
    said = []
    for batch in batches:
        with widened(model):
            logits = model(**batch).logits
        if logits.ndim == 3:
            logits = logits[batch["attention_mask"].bool()]
        said.append(logits[:, 0].float() if logits.shape[-1] == 1 else logits.argmax(-1))
    return torch.cat(said).cpu()


def agreeing(wanted: Tensor, given: Tensor) -> float:
    if wanted.is_floating_point():
        return float(torch.corrcoef(torch.stack([wanted, given]))[0, 1].nan_to_num())
    return float((wanted == given).float().mean())
