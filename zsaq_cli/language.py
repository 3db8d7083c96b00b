"""`zsaq quantize` for text: classifiers, causal language models, and (round-to-nearest alone) any other head."""

import copy
from collections.abc import Iterator
from itertools import islice
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from zsaq import Batch, Loop, QuantConfig, quantize_model
from zsaq.language.layout import Layout
from zsaq.language.models import longest
from zsaq.language.sam_sga import GPTQ_BATCHES, SLOW, gptq_student, pull, student_of, warm_start, zsaq
from zsaq.language.sources import random_tokens
from zsaq.language.text_generator import TextGenerator
from zsaq.language.writing import load_generator
from zsaq_cli.making import Request

METHODS = ("rtn", "gptq", "gptq-qat", "random-qat", "lkd", "llm-qat", "zsaq")
RATE = 0.0032  # in grid steps: zsaq's own, and the same for what it is compared with
DEFAULT_WRITER = "facebook/opt-125m"


def quantize(
    teacher: PreTrainedModel, kind: str, request: Request, loop: Loop
) -> tuple[PreTrainedModel, tuple[Any, ...]]:
    """The student and its tokenizer. Raises ValueError for bits or methods that do not exist."""
    config = QuantConfig.parse(request.bits)
    if request.method not in METHODS:
        raise ValueError(f"method is {request.method!r}; for text give one of {', '.join(METHODS)}")
    if kind == "other" and request.method != "rtn":
        raise ValueError(f"{type(teacher).__name__} is neither a classifier nor causal: only rtn works for it")
    try:
        tokenizer = AutoTokenizer.from_pretrained(request.model)
    except (OSError, ValueError) as error:
        if request.method != "rtn":
            raise ValueError(f"{request.model} has no tokenizer, which {request.method} needs: {error}") from error
        return quantize_model(teacher, config), ()
    return fit(teacher, tokenizer, kind, config, request, loop), (tokenizer,)


def fit(
    teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, kind: str, config: QuantConfig, request: Request,
    loop: Loop,
) -> PreTrainedModel:  # fmt: skip
    steps = request.steps
    if request.method == "rtn":
        return quantize_model(teacher, config)
    teacher.float()
    if request.method == "random-qat":
        stream = noise(teacher, tokenizer, request)
    else:
        stream = text_generator(teacher, tokenizer, kind, request)
    match request.method:
        case "gptq":
            return gptq_student(teacher, config, islice(stream, max(1, steps // 4)), loop)
        case "gptq-qat":
            student = gptq_student(teacher, config, islice(stream, GPTQ_BATCHES), loop)
            return pull(student, teacher, stream, steps=steps, lr=SLOW, loop=loop)
        case "lkd":
            return warm_start(student_of(teacher, config, stream, loop), teacher, stream, steps, RATE, loop)
        case "random-qat" | "llm-qat":
            student = student_of(teacher, config, stream, loop)
            return pull(student, teacher, stream, steps=steps, lr=RATE, loop=loop)
        case _:
            assert isinstance(stream, TextGenerator)
            return zsaq(teacher, config, stream, steps=steps, warm=steps // 5, lr=RATE, loop=loop)


def limit(teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens of a synthetic row, special ones included."""
    return min(128, tokenizer.model_max_length, longest(teacher) or 128)


def noise(teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, request: Request) -> Iterator[Batch]:
    layout = Layout.of(tokenizer, limit(teacher, tokenizer), request.text_pair)
    return random_tokens(tokenizer, layout, 32, length=(4, min(40, layout.max_length // 3)), seed=request.seed)


def text_generator(
    teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, kind: str, request: Request
) -> TextGenerator:
    """Text of a generator, for the teacher: of a copy of itself where it is causal and no other is named."""
    most = limit(teacher, tokenizer)
    if kind == "causal" and request.generator is None:
        generator, writer = copy.deepcopy(teacher).requires_grad_(True), tokenizer
    else:
        generator, writer = load_generator(request.generator or DEFAULT_WRITER)
    span = (most - 2, most - 2) if kind == "causal" else (4, min(40, most // 3))
    return TextGenerator.of(
        generator, writer, teacher, tokenizer, max_length=most, text_pair=request.text_pair, seed=request.seed,
        length=span, batch_size=16 if kind == "causal" else 32,
    )  # fmt: skip
