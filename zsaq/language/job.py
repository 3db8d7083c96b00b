"""What a language method works on: a teacher, and where its inputs can come from."""

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, final

import torch
from accelerate import PartialState
from huggingface_hub.utils import validate_repo_id
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

from zsaq.language.ascent import Ascent
from zsaq.language.asking import Asking, has_template
from zsaq.language.bridge import BridgeKind
from zsaq.language.chunks import Chunks, ChunkStream
from zsaq.language.layout import Layout
from zsaq.language.models import TaskKind, known_task_kind, pretrained
from zsaq.language.prompted import PromptedWriter
from zsaq.language.prompts import Prompts
from zsaq.language.size import Size
from zsaq.language.sources import over_and_over, random_tokens, texts
from zsaq.language.text import Text
from zsaq.language.text_generator import TextGenerator
from zsaq.language.turns import Turns
from zsaq.language.writing import fast_dtype, load_generator, with_adapters
from zsaq.quant.config import QuantConfig
from zsaq.quant.positions import longest
from zsaq.quant.tokens import check_tokens
from zsaq.train.pair import Batch
from zsaq.train.widening import is_narrow, keep_narrow, widened

DEFAULT_GENERATOR = "HuggingFaceTB/SmolLM2-135M-Instruct"  # writes for a classifier where no other is named
PROMPTED = 48  # tokens of a prompted text at most
TALKS = 0.5  # of a chat model's own text are conversations
LONGEST = 128  # tokens of a synthetic row, special ones included, where nothing is shorter
RealRows = Text | list[str] | list[tuple[str, str]]


@final
@dataclass
class TextJob:
    """`TextJob.of` fills in what follows from the teacher.

    `max_length`: tokens of a row, special ones included; `length`: content tokens of synthetic rows, first to last;
    `batch_size`: rows of a step; `text_pair`: whether the teacher reads two texts at once.
    `generator`: a model and its tokenizer, which stay as they are (what climbs is a copy), or the path or id to load
    them from. `given`: batches of one's own. `real()`: unlabelled real text, not read before a method asks for it, and
    never by one that is zero-shot. `style`: further options of `TextGenerator`. `start`: the float model that students
    are copied from; the teacher is another only where `answer_in` loads it in few bits.

    `corpus`: text that is there, which then is what methods read; else the generator writes: after the prompts of
    `asking`, after automatic ones if it has a chat template and the teacher is no causal model, and from its begin
    token otherwise; of what a chat model writes for itself TALKS are conversations. `chunks`: what it has written after
    prompts. `sized`: configurations that were chosen by size, `asked`: prompts of the text that this took, if any.
    `shared`: all processes read the same.
    """

    teacher: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    max_length: int
    length: tuple[int, int]
    batch_size: int
    generator: str | tuple[PreTrainedModel, PreTrainedTokenizerBase]
    text_pair: bool = False
    given: Iterable[Batch] | None = None
    real: Callable[[], RealRows] | None = None
    style: Mapping[str, Any] = field(default_factory=dict)
    corpus: Sequence[Any] | None = None
    asking: Asking = field(default_factory=Asking)
    chunks: Chunks | None = None
    sized: dict[Size, QuantConfig] = field(default_factory=dict)
    asked: Prompts | None = None
    shared: bool = False
    start: PreTrainedModel = field(init=False)

    def __post_init__(self) -> None:
        self.start = self.teacher

    @classmethod
    def of(
        cls,
        teacher: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        generator: str | tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None,
        text_pair: bool = False,
        batches: Iterable[Batch] | None = None,
        real: Callable[[], RealRows] | None = None,
        max_length: int | None = None,
    ) -> Self:
        """A job for a float teacher. Rounding needs no more than that; `tokenizer`: the teacher's, for all that reads
        text.

        Synthetic rows hold `max_length` tokens at most (default: 128, or what tokenizer and teacher allow), those of a
        causal teacher as many, others 4 to 40 of content each, or what fits. A causal teacher writes its own text where
        no `generator` is named; for others DEFAULT_GENERATOR writes. Raises ValueError for a teacher that is no model
        of transformers, a generator that is neither named nor a pair, and for rows that the teacher cannot read.
        """
        causal = known_task_kind(pretrained(teacher)) == "causal"
        limit = longest(teacher)
        if max_length is not None and limit is not None and max_length > limit:
            raise ValueError(f"max_length is {max_length}; {type(teacher).__name__} reads at most {limit} tokens")
        known = LONGEST if tokenizer is None else tokenizer.model_max_length
        tokens = min(LONGEST, limit or LONGEST, known) if max_length is None else max_length
        most = max(1, min(40, (tokens - 2) // (1 + text_pair)))
        length = (tokens - 2, tokens - 2) if causal else (min(4, most), most)
        if generator is None:
            generator = (teacher, tokenizer) if causal and tokenizer is not None else DEFAULT_GENERATOR
        elif not isinstance(generator, str | tuple):
            raise ValueError(f"generator is a {type(generator).__name__}; give a path, an id or (model, tokenizer)")
        elif isinstance(generator, str) and not os.path.isdir(generator := os.path.expanduser(generator)):
            try:
                validate_repo_id(generator)
            except ValueError as error:
                raise ValueError(
                    f"generator is {generator!r:.200}, neither a folder here nor an id: {error}"
                ) from error
        return cls(teacher, tokenizer, tokens, length, 16 if causal else 32, generator, text_pair, batches, real)

    @property
    def kind(self) -> TaskKind | None:
        """What the teacher answers; None for other heads, which can be rounded alone."""
        return known_task_kind(self.start)

    @property
    def words(self) -> PreTrainedTokenizerBase:
        """The teacher's tokenizer. Raises ValueError if there is none, and for one of another model."""
        if self.tokenizer is None:
            reads, name = self.start.main_input_name, type(self.start).__name__
            remedy = "give tokenizer=..." if reads == "input_ids" else f"it reads {reads}: give weights alone, 'w4a16'"
            raise ValueError(f"text for {name} needs its tokenizer, and none was given; {remedy}")
        check_tokens(self.start, self.tokenizer)
        return self.tokenizer

    @property
    def layout(self) -> Layout:
        """Raises ValueError without a tokenizer, and see `Layout.of`."""
        return Layout.of(self.words, self.max_length, self.text_pair)

    def answer_in(self, bits: int, path: str) -> None:
        """The teacher anew, in 8 or 4 bits by bitsandbytes: a large one's answers for a fraction of the memory."""
        try:
            import bitsandbytes  # noqa: F401  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ValueError(
                f'a teacher in {bits} bits needs bitsandbytes: pip install "zsaq[bnb]", or give one in floats'
            ) from None
        quantization = BitsAndBytesConfig(load_in_8bit=bits == 8, load_in_4bit=bits == 4, bnb_4bit_quant_type="nf4")
        self.teacher = type(self.start).from_pretrained(
            path, quantization_config=quantization, device_map={"": self.start.device}, dtype=torch.float32
        )

    def text(self, seed: int) -> Iterator[Batch]:
        """An endless stream of synthetic text: of the corpus, of prompted text, which all seeds share, or of what the
        generator writes by itself; nothing is copied. Raises ValueError for a generator that cannot write, or not in
        the teacher's language."""
        ours = self.words  # refused before anything is loaded
        if self.corpus is not None:
            return texts(list(self.corpus), ours, self.layout, self.batch_size, seed=self.seed_of(seed))
        if self.chunks is None and not self.asks:
            model, tokenizer = load_generator(self.generator) if isinstance(self.generator, str) else self.generator
            talks = TALKS if tokenizer is ours and self._talks(tokenizer) else 0.0
            return self._stream(model, tokenizer, ours, seed, chat=talks)
        self.chunks = self.chunks or Chunks.shared(lambda: self.written(self.seed_of(0)))
        return ChunkStream(self.chunks, ours, self.layout, self.batch_size, seed=self.seed_of(seed))

    @property
    def asks(self) -> bool:
        """Whether the generator is asked for text, by prompts."""
        return self.asking.prompts is not None or (self.kind != "causal" and has_template(self.generator))

    def written(self, seed: int, *, max_tokens: int | None = None, goal: int | None = None, **options: Any) -> Chunks:
        """Text that the generator writes after prompts: `max_tokens` of its own, by default what the teacher reads, at
        most `PROMPTED`; `goal`: texts that will be asked for, where that is known; `options` are those of
        `PromptedWriter`. Raises ValueError as that does."""
        if isinstance(self.generator, str):
            model, tokenizer = load_generator(self.generator, fast_dtype(self.start.device))
            model.to(self.start.device)  # type: ignore[arg-type]
        else:
            model, tokenizer = self.generator
        half = (longest(model) or 2 * PROMPTED) // 2  # the other is the prompt's
        most = min(PROMPTED, half, self.length[1] if self.kind == "causal" else PROMPTED)
        writer = PromptedWriter(model, tokenizer, max_tokens=most if max_tokens is None else max_tokens, **options)
        return Chunks(writer, self.asking.of(writer, self.start, self.words, self.text_pair), seed=seed, goal=goal)

    def ascent(self, seed: int, *, bridge: BridgeKind = "auto", lora: bool = False, **options: Any) -> Ascent:
        """A generator that can climb, with its stream `text`; `options` are those of `Ascent`. Raises ValueError as
        `text` does, and for LoRA without peft."""
        ours, reference = self.words, None
        if self.corpus is not None or self.asking.prompts is not None:
            raise ValueError(
                "a generator that climbs writes by itself and reads neither a corpus nor prompts: leave them off, or "
                "take a method that does not climb, such as llm-qat"
            )
        if isinstance(self.generator, str):
            model, tokenizer = load_generator(self.generator)
        else:
            start, tokenizer = self.generator
            start.to(self.teacher.device)  # type: ignore[arg-type]
            computes = start.dtype == torch.float32 or is_narrow(start)
            if lora and computes:  # adapters stand on the very weights that are there
                model = copy.deepcopy(start, {id(t): t for t in (*start.parameters(), *start.buffers())})
                if is_narrow(start):
                    keep_narrow(model)
            else:
                model = copy.deepcopy(start).float().requires_grad_(True)
            reference = start if computes else None
        with widened(model):
            climber = with_adapters(model) if lora else model
        text = self._stream(climber, tokenizer, ours, seed, kind=bridge)
        return Ascent(text, self.teacher, reference=reference, **options)

    def _talks(self, tokenizer: PreTrainedTokenizerBase) -> bool:
        """Whether conversations fit into rows: half of one at least is the model's own."""
        turns = Turns.of(tokenizer)
        return turns is not None and 2 * (len(turns.before) + len(turns.between)) <= self.max_length

    def _stream(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ours: PreTrainedTokenizerBase, seed: int,
        kind: BridgeKind = "auto", chat: float = 0.0,
    ) -> TextGenerator:  # fmt: skip
        last = longest(model) or self.length[1] + 1
        length = tuple(min(n, last - 1) for n in self.length)
        options = {"batch_size": self.batch_size, "length": length, "seed": self.seed_of(seed), "chat": chat}
        return TextGenerator.of(
            model, tokenizer, self.teacher, ours, kind=kind, max_length=self.max_length, text_pair=self.text_pair,
            **options | dict(self.style),
        )  # fmt: skip

    def noise(self, seed: int) -> Iterator[Batch]:
        """Random tokens of the teacher."""
        return random_tokens(self.words, self.layout, self.batch_size, length=self.length, seed=self.seed_of(seed))

    def given_batches(self, seed: int) -> Iterator[Batch]:
        """One's own batches, as they come. Raises ValueError if there are none."""
        if self.given is None:
            raise ValueError("distill learns from batches of your own, and none were given; give batches=...")
        return over_and_over(self.given)

    def real_text(self, seed: int) -> Iterator[Batch]:
        """Unlabelled real text, for upper bounds alone. Raises ValueError if there is none."""
        if self.real is None:
            raise ValueError("real text was asked for, and none was given; give real=..., or a method without data")
        return texts(self.real(), self.words, self.layout, self.batch_size, seed=self.seed_of(seed))

    def seed_of(self, seed: int) -> int:
        """A seed of this process's own, or the same for all."""
        return seed if self.shared else seed + 1000 * PartialState().process_index
