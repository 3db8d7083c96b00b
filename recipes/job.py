"""What a language recipe works on: a teacher, its tokenizer, a generator, and how a model is measured."""

import copy
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from embedded import prepare
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from zsaq.eval.metrics import Accuracy
from zsaq.eval.perplexity import perplexity, tokenize
from zsaq.eval.pretrained import load
from zsaq.eval.scoring import predict, score
from zsaq.eval.tasks import HUB, Task, find, read_rows
from zsaq.language.bridge import Kind
from zsaq.language.layout import Layout
from zsaq.language.models import longest
from zsaq.language.sources import random_tokens, texts
from zsaq.language.text import Text
from zsaq.language.text_generator import TextGenerator
from zsaq.language.writing import load_generator
from zsaq.report.card import Data
from zsaq.train.pair import Batch

Scores = dict[str, float]


@dataclass
class Job:
    """`generator()` gives a fresh one, as it was before any ascent, and its tokenizer. `measure` is only ever reported.

    `length`: content tokens of synthetic rows, first to last. `real()`: unlabelled real text, for the oracle alone,
    not read before it asks. `start`: the float model that students are copied from, and that scores compare with; the
    teacher is another only where `answer_in` loads it in few bits. `data`: what `measure` reads.
    """

    name: str
    teacher: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    measure: Callable[[PreTrainedModel], Scores]
    layout: Layout
    length: tuple[int, int]
    data: Data
    generator: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]] | None = None
    real: Callable[[], Text | list[str] | list[tuple[str, str]]] | None = None
    batch: int = 32
    style: dict = field(default_factory=dict)
    bridge: Kind = "auto"
    start: PreTrainedModel = field(init=False)

    def __post_init__(self) -> None:
        self.start = self.teacher

    def answer_in(self, bits: int, path: str) -> None:
        """The teacher anew, in 8 or 4 bits by bitsandbytes: a large one's answers for a fraction of the memory."""
        try:
            import bitsandbytes  # noqa: F401  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ValueError(
                f'a teacher in {bits} bits needs bitsandbytes: pip install "zsaq[bnb]", or leave --teacher_bits off'
            ) from None
        quantization = BitsAndBytesConfig(load_in_8bit=bits == 8, load_in_4bit=bits == 4, bnb_4bit_quant_type="nf4")
        self.teacher = type(self.start).from_pretrained(
            path, quantization_config=quantization, device_map={"": self.start.device}, dtype=self.start.dtype
        )

    def text_generator(self, seed: int, **options) -> TextGenerator:
        assert self.generator is not None
        generator, tokenizer = self.generator()
        last = longest(generator) or self.length[1] + 1
        length = tuple(min(n, last - 1) for n in self.length)
        options = {"batch_size": self.batch, "length": length, "seed": own(seed)} | self.style | options
        shape: dict[str, Any] = {
            "kind": self.bridge,
            "max_length": self.layout.max_length,
            "text_pair": self.layout.text_pair,
        }
        return TextGenerator.of(generator, tokenizer, self.teacher, self.tokenizer, **shape, **options)

    def noise(self, seed: int) -> Iterator[Batch]:
        return random_tokens(self.tokenizer, self.layout, self.batch, length=self.length, seed=own(seed))

    def oracle(self, seed: int) -> Iterator[Batch]:
        if self.real is None:
            raise ValueError(f"{self.name} has no real text for the oracle; give --data_dir or --real_text")
        return texts(self.real(), self.tokenizer, self.layout, self.batch, seed=own(seed))


def own(seed: int) -> int:
    """A seed of this process's own."""
    return seed + 1000 * PartialState().process_index


def size(model: PreTrainedModel) -> int:
    """Bytes of the model's weights as saved."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))


def embedded(generator: str | None = None, lora: bool = False) -> Job:
    """The default that downloads nothing: see embedded.py."""
    made = prepare()
    task = Task("python", ("sentence",), tuple(made.names), (Accuracy,), "python")
    data = Data("CPython's documentation", split="test")
    job = _scored("embedded", made.teacher, made.tokenizer, task, made.test, data, None)
    ours = lambda: (copy.deepcopy(made.generator).requires_grad_(True), made.tokenizer)  # noqa: E731
    job.generator = ours if generator is None else lambda: load_generator(generator, lora)
    job.real = lambda: made.unlabeled
    return job


def classifier(
    teacher: str, task: str, data_dir: str | None, generator: str, split: str, accelerator: Accelerator,
    lora: bool = False,
) -> Job:  # fmt: skip
    """A BERT-type teacher of a GLUE task; folders and Hub ids alike. The train split is for the oracle only."""
    spec = find(task)
    model, tokenizer = load(teacher, AutoModelForSequenceClassification)
    model.float()
    hub = {} if data_dir else {"id": HUB, "task": spec.config}
    data = Data(f"GLUE {task}", split=split, **hub)
    job = _scored(f"{teacher} on {task}", model, tokenizer, spec, read_rows(spec, split, data_dir), data, accelerator)
    job.generator = lambda: load_generator(generator, lora)

    def real() -> list[str] | list[tuple[str, str]]:
        columns = [[row[c] for c in spec.columns] for row in read_rows(spec, "train", data_dir)]
        return [row[0] for row in columns] if len(spec.columns) == 1 else [(row[0], row[1]) for row in columns]

    job.real = real
    return job


def _scored(
    name: str, model, tokenizer, spec: Task, rows: list, data: Data, accelerator: Accelerator | None
) -> Job:  # fmt: skip
    model.to(accelerator.device if accelerator else "cpu").eval()
    limit = min(128, tokenizer.model_max_length)
    answers = predict(model, tokenizer, spec, rows, max_length=limit, accelerator=accelerator)

    def measure(student: PreTrainedModel) -> Scores:
        return score(student, tokenizer, spec, rows, answers, max_length=limit, accelerator=accelerator)

    layout = Layout.of(tokenizer, limit, len(spec.columns) == 2)
    return Job(name, model, tokenizer, measure, layout, length=(4, 40), data=data)


def causal(
    teacher: str, text: str, window: int, windows: int | None, separator: str | None, generator: str | None,
    real_text: str | None, accelerator: Accelerator, lora: bool = False,
) -> Job:  # fmt: skip
    """A causal teacher, measured by perplexity on `text`; its generator is a copy of itself unless another is named."""
    model, tokenizer = load(teacher, AutoModelForCausalLM)
    model.to(accelerator.device).float().eval()
    ids = tokenize(tokenizer, Path(text).read_text(encoding="utf-8"), separator)
    length = min(128, window - 2)

    def measure(student: PreTrainedModel) -> Scores:
        told = perplexity(student, ids, window, teacher=model, max_windows=windows, accelerator=accelerator)
        return told | {"score": told["perplexity"]}

    def real() -> Text:
        assert real_text is not None
        stream = tokenize(tokenizer, Path(real_text).read_text(encoding="utf-8")[:4_000_000], None)
        rows = stream[: len(stream) // length * length].view(-1, length)
        return Text(rows, torch.ones_like(rows, dtype=torch.bool))

    data = Data(Path(text).name)
    job = Job(teacher, model, tokenizer, measure, Layout.of(tokenizer, length + 2), length=(length, length), data=data)
    job.generator = lambda: (
        (copy.deepcopy(model).requires_grad_(True), tokenizer) if generator is None else load_generator(generator, lora)
    )
    job.real = real if real_text else None
    job.batch = 16
    return job
