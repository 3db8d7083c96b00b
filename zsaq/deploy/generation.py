"""Text, token by token, as users of a runtime generate it: milliseconds to the first, and tokens a second after it."""

import time
from collections.abc import Callable
from typing import Any, Final

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from zsaq.deploy.timing import Bench, Made, Timed
from zsaq.io.inputs import random_inputs, text_limit

PROMPT: Final = 32  # tokens
NEW: Final = 32  # tokens
Write = Callable[[list[int], int, Callable[[], None]], Any]
"""Writes as many tokens as asked for after a prompt of token ids, the likeliest each, an end of text or not, and calls
back when each is known."""


def prompt_for(model: PreTrainedModel) -> tuple[list[int], int]:
    """A prompt of random tokens, and how many to write after it: fewer than usual where the model takes fewer."""
    limit = text_limit(model)
    length = min(PROMPT, limit // 2)
    return random_inputs(model, (1, length))["input_ids"][0].tolist(), min(NEW, limit - length)


def generates(model: PreTrainedModel) -> bool:
    """Whether a causal language model continues text, and takes enough of it for a first and a next token."""
    causal = model.main_input_name == "input_ids" and not model.config.is_encoder_decoder
    return causal and model.can_generate() and text_limit(model) >= 3


def measure(write: Write, asked: tuple[list[int], int]) -> tuple[float, float]:
    """Milliseconds to the first token, and tokens a second after it. Raises ValueError for too few or too many."""
    prompt, count = asked
    known: list[float] = []
    begin = time.perf_counter()
    write(prompt, count, lambda: known.append(time.perf_counter()))
    if len(known) != count:
        raise ValueError(f"it wrote {len(known)} tokens where {count} were asked for")
    return (known[0] - begin) * 1e3, (count - 1) / max(known[-1] - known[0], 1e-9)


class Ticking(BaseStreamer):
    """Calls back at each token of `generate`, which begins with the prompt."""

    def __init__(self, tick: Callable[[], None]) -> None:
        self.tick, self.prompted = tick, False

    def put(self, value: Any) -> None:
        if self.prompted:
            self.tick()
        self.prompted = True

    def end(self) -> None:
        pass


def torch_write(model: PreTrainedModel) -> Write:
    """By the model's own `generate`, its key-value cache too; what its files say about sampling is left aside."""
    model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0)

    def write(prompt: list[int], count: int, tick: Callable[[], None]) -> Any:
        ids = torch.tensor([prompt])
        options: dict[str, Any] = {"attention_mask": torch.ones_like(ids), "max_new_tokens": count}
        with torch.inference_mode():
            return model.generate(ids, streamer=Ticking(tick), **options)  # type: ignore[operator]

    return write


def in_torch(make: Callable[[Bench], Made]) -> Callable[[Bench], Timed]:
    """A row's `generate`, of what makes a model in torch."""

    def generate(bench: Bench) -> Timed:
        model, size, in_floats = make(bench)
        return Timed(torch_write(model), size, in_floats)

    return generate
