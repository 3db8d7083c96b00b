"""The generator: any causal language model that writes text."""

from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from zsaq.foreign import UNMADE
from zsaq.language.models import Vocabulary
from zsaq.language.sampling import Memory, draw
from zsaq.language.telling import Tell, nobody, part_of
from zsaq.language.text import Text
from zsaq.method import alike
from zsaq.quant.positions import longest
from zsaq.train.optim import NotFinite
from zsaq.train.widening import widened


def fast_dtype(device: torch.device | None = None) -> torch.dtype | None:
    """What a model that only writes is loaded in: None, its own dtype, on an accelerator; bfloat16 on processors that
    calculate with it; float32 elsewhere, where 16 bits are slower (on a Xeon of 2021 bfloat16 4 times, float16 9)."""
    if device is not None and device.type != "cpu":
        return None
    able = vars(torch.cpu).get("get_capabilities", dict)()
    calculates = any(able.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))
    return torch.bfloat16 if calculates else torch.float32


def load_generator(
    path_or_id: str, dtype: torch.dtype | None = torch.float32
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in eval mode and `dtype` (None: its own), and its tokenizer.

    Raises ValueError for a path or id that cannot be loaded here, and for a model without a head that writes, which
    would be drawn at random.
    """
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path_or_id, dtype=dtype or "auto", trust_remote_code=False, use_safetensors=True, output_loading_info=True
        )
        model, info = loaded
        if info["missing_keys"]:
            raise ValueError(f"it has no weights for {sorted(info['missing_keys'])[:4]}")
        return model.eval(), AutoTokenizer.from_pretrained(path_or_id, trust_remote_code=False)
    except (OSError, ValueError, *UNMADE) as error:
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"the generator {path_or_id} cannot be loaded ({why}); give generator= "
            "(--generator) the folder or id of another causal language model"
        ) from error


def check_generator(model: PreTrainedModel) -> None:
    """Raises ValueError for weights that are not finite."""
    if broken := [name for name, p in model.named_parameters() if not p.isfinite().all()]:
        raise ValueError(
            f"the generator {model.name_or_path or type(model).__name__} has weights that are not finite "
            f"({', '.join(broken[:4])}): take another generator"
        )


def with_adapters(model: PreTrainedModel) -> PreTrainedModel:
    """The model, of which only low-rank adapters are trained from now on. Raises ValueError without peft."""
    try:
        from peft import LoraConfig
    except ImportError:
        raise ValueError('LoRA needs peft: pip install "zsaq[lora]", or leave lora off') from None
    model.add_adapter(LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
    return model.eval()


def check_style(length: Any, greedy: Any, temperature: Any, uniform_start: Any) -> None:
    """Raises ValueError for what `write` cannot write by, whatever the model."""
    ends = (length, length) if isinstance(length, int) else length
    if not alike(ends, (1, 1)) or not 1 <= ends[0] <= ends[1]:
        raise ValueError(f"length is {length!r}; give an integer of at least 1, or two, lower end first")
    if not alike(greedy, (0, 0)) or greedy[0] > greedy[1]:
        raise ValueError(f"greedy is {greedy!r}; give two integers of at least 0, lower end first")
    if not alike(temperature, 1.0) or temperature <= 0 or not isinstance(uniform_start, bool):
        raise ValueError(
            f"temperature is {temperature!r}, uniform_start {uniform_start!r}; give a finite number above 0, and True "
            "or False"
        )
    if greedy[1] and not uniform_start:
        raise ValueError(f"greedy {greedy} without uniform_start would begin all texts alike; give greedy=(0, 0)")


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
    tell: Tell = nobody,
) -> Text:
    """`n` texts by the hybrid of LLM-QAT (Liu et al. 2023, arXiv 2305.17888, section 2.1).

    Each text begins with a token drawn uniformly from the printable ones (`uniform_start`), goes on greedily for
    greedy[0]..greedy[1] tokens and is sampled from there until it ends by itself or by its length: `length`, or drawn
    from length[0]..length[1]. `rng` lives on the CPU; the same seed writes the same text. `tell` hears after every
    token which share is done. Special tokens are never written, no text is empty. Raises ValueError for numbers that
    cannot be, and for greedy words after nothing but the begin token, which would make all texts alike; NotFinite for a
    generator whose answers are not finite.
    """
    check_style(length, greedy, temperature, uniform_start)
    low, high = (length, length) if isinstance(length, int) else length
    limit = longest(model)
    if limit is not None and high >= limit:
        raise ValueError(f"length is {length}; it must lie in 1..{limit - 1}, as {type(model).__name__} reads {limit}")
    if not alike((n, batch_size), (1, 1)) or min(n, batch_size) < 1:
        raise ValueError(f"n is {n!r}, batch_size {batch_size!r}; give integers of at least 1")
    parts = []
    with widened(model):
        for size in [batch_size] * (n // batch_size) + [n % batch_size] * (n % batch_size > 0):
            limits = torch.randint(low, high + 1, (size,), generator=rng)
            safe = torch.randint(greedy[0], greedy[1] + 1, (size,), generator=rng) + uniform_start
            first = torch.randint(len(vocabulary.printable), (size, uniform_start), generator=rng)
            told = part_of(tell, len(parts) * batch_size / n, size / n)
            parts.append(_write(model, vocabulary, vocabulary.printable[first], limits, safe, temperature, rng, told))
    return Text.cat(parts, vocabulary.pad)


def _write(
    model: PreTrainedModel,
    vocabulary: Vocabulary,
    begin: Tensor,
    limits: Tensor,
    safe: Tensor,
    heat: float,
    rng: torch.Generator,
    tell: Tell,
) -> Text:
    """Texts that start with `begin` [N, 0 or 1] and hold `limits` [N] tokens at most, the first `safe` [N] greedy."""
    (n, start), device = begin.shape, model.device
    ids = torch.full((n, int(limits.max())), vocabulary.pad)
    ids[:, :start] = begin
    ends = torch.tensor(vocabulary.ends, dtype=torch.int64)
    closed = (~vocabulary.content).nonzero()[:, 0]
    but_end = closed[~torch.isin(closed, ends.to(device))]
    rows, lengths, going = torch.arange(n), limits.clone(), torch.ones(n, dtype=torch.bool)
    current, memory = torch.cat([torch.full((n, 1), vocabulary.bos), begin], 1).to(device), Memory(model)
    for position in range(start, ids.shape[1]):
        going &= limits > position
        if not going.any():
            break
        if position > start and 2 * int(going.sum()) <= len(rows):  # finished rows are forgotten
            held = going[rows]
            if memory.keep(held.nonzero()[:, 0].to(device)):
                rows, current = rows[held], current[held.to(device)]
        answer = memory.answer(current)
        if not answer.amax(-1).isfinite().all():  # a row that is all -inf, or one with a nan or inf
            raise NotFinite(
                f"the answers of the generator {type(model).__name__} are not finite: take another generator"
            )
        logits = answer.float().index_fill_(1, but_end if position else closed, -torch.inf)
        chance = torch.rand(2, n, 1, generator=rng, dtype=torch.float64)[:, rows].to(device)
        careful = (position < safe[rows]).to(device)
        current = draw(logits if heat == 1 else logits / heat, chance)
        if careful.any():
            current = torch.where(careful[:, None], logits.argmax(-1, keepdim=True), current)
        token = current[:, 0].cpu()
        ended = rows[torch.isin(token, ends) & going[rows]]
        lengths[ended], going[ended] = position, False
        ids[rows[going[rows]], position] = token[going[rows]]
        tell((position + 1) / ids.shape[1])
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    return Text(ids.to(device), mask.to(device))
