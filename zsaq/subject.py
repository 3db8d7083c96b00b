"""What is quantized: a model with what reads its inputs, and the methods and configurations that suit it. With
`zsaq.api` the one place that sees language and vision."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, final, get_args

from torch import nn

from zsaq.io.corpus import Corpus
from zsaq.io.folder import place_of
from zsaq.io.readers import check_readers, processor_of, tokenizer_of
from zsaq.io.teacher import Kind, check_float, kind_of, load_teacher, name_of, unchanged
from zsaq.knowledge import asking_of, used
from zsaq.language import methods as language
from zsaq.language.allocation import configured
from zsaq.language.defaults import usual_bits
from zsaq.language.job import TextJob
from zsaq.language.size import Size
from zsaq.method import Effort, Method
from zsaq.quant.config import QuantConfig
from zsaq.quant.reach import copied
from zsaq.report.card import base_of
from zsaq.run import Base
from zsaq.sentence import Sentence, told_pooling
from zsaq.train.logging import say
from zsaq.train.loop import Loop
from zsaq.train.pair import check_batches
from zsaq.train.widening import keep_narrow
from zsaq.vision import choice, presets
from zsaq.vision import methods as vision
from zsaq.vision.image_spec import ImageSpec, shown_size
from zsaq.vision.job import ImageJob
from zsaq.vision.models import channels_of, spec_of

OWN: Final = "the callable's own"  # inputs of a method that no table has
GIVEN: Final = "distill"  # the method that learns from batches of the user's
# What may stand beside a model.
SUBJECT: Final = (
    *("tokenizer", "processor", "spec", "generator", "batches", "real", "text_pair", "teacher_bits"),
    *("corpus", "prompts", "base"),
)
TeacherBits = Literal[4, 8]


@final
@dataclass(frozen=True)
class Subject:
    """What is quantized: the job that methods work on, and what reads the model's inputs, tokenizer or processor;
    `source`: the path or id that it is known by; `named`: whether it was given by that; `given`: which sources of
    inputs came with it, by name; `sentence`: how an embedding model pools, where its files tell."""

    source: str
    kind: Kind
    job: TextJob | ImageJob
    reader: Any
    named: bool
    teacher_bits: TeacherBits | None = None
    given: frozenset[str] = frozenset()
    corpus: Corpus | None = None
    sentence: Sentence | None = None

    @property
    def parts(self) -> tuple[Any, ...]:
        """What goes along with a student: its reader, and what sentence-transformers reads."""
        return tuple(part for part in (self.reader, self.sentence) if part is not None)

    @property
    def name(self) -> str:
        return name_of(self.source)

    @property
    def model(self) -> Any:
        """The float model that students are copied from."""
        return self.job.start if isinstance(self.job, TextJob) else self.job.teacher

    @classmethod
    def of(
        cls, model: str | Path | nn.Module, *, tokenizer: Any = None, processor: Any = None,
        spec: ImageSpec | int | None = None, generator: Any = None, batches: Any = None, real: Any = None,
        text_pair: bool = False, teacher_bits: TeacherBits | None = None, corpus: Any = None,
        prompts: Sequence[str] | None = None, base: str | Path | None = None, shared: bool = False,
    ) -> "Subject":  # fmt: skip
        """Loads what is named by a path or id. `shared`: all processes read the same text, that by which bits are
        chosen too. Raises ValueError for what belongs to another kind of model."""
        if not isinstance(model, nn.Module | str | Path):
            raise ValueError(f"model is a {type(model).__name__}; give a path, a Hub id or a model of torch")
        if not isinstance(real, Callable | None):
            raise ValueError(f"real is a {type(real).__name__}; give a function that answers the data when it is read")
        named = not isinstance(model, nn.Module)
        model, text = place_of(model) if named else model, None  # pyright: ignore[reportArgumentType]
        teacher: Any = load_teacher(model) if isinstance(model, str) else model
        architecture = type(teacher).__name__
        source = model if isinstance(model, str) else str(vars(teacher).get("name_or_path") or f"a {architecture}")
        check_float(teacher, source)
        kind = kind_of(teacher)
        words = {
            "tokenizer": tokenizer, "generator": generator, "text_pair": text_pair or None,
            "teacher_bits": teacher_bits, "corpus": corpus, "prompts": prompts, "base": base,
        }  # fmt: skip
        foreign = words if kind == "image" else {"processor": processor, "spec": spec}
        if given := [key for key, value in foreign.items() if value is not None]:
            raise ValueError(f"{', '.join(given)} is not for {architecture} (of kind {kind}): leave it off")
        check_readers(tokenizer=tokenizer)
        if not isinstance(text_pair, bool):
            raise ValueError(f"text_pair is {text_pair!r}; give True or False")
        if teacher_bits is not None and (type(teacher_bits) is not int or teacher_bits not in get_args(TeacherBits)):
            raise ValueError(f"teacher_bits is {teacher_bits!r}; give 8 or 4, or leave it off for a teacher in floats")
        if batches is not None:
            check_batches(batches)
        if kind == "image":
            reader = processor if processor is not None or not named else processor_of(source)
            spec = reader and shown_size(reader, channels_of(teacher)) if spec is None else spec
            spec = spec if isinstance(spec, ImageSpec) else spec_of(teacher, spec)
            job: TextJob | ImageJob = ImageJob(teacher, spec, reader, real=real, given=batches)
        else:
            reader = tokenizer if tokenizer is not None or not named else tokenizer_of(source)
            generator = str(generator) if isinstance(generator, Path) else generator
            text = None if corpus is None else Corpus.of(corpus)
            pairs = text_pair or (text is not None and text.text_pair)
            job = TextJob.of(teacher, reader, generator=generator, text_pair=pairs, batches=batches, real=real)
            job.corpus, job.shared = None if text is None else text.rows, shared
            job.asking = asking_of(teacher, source if named else None, prompts, pairs, base)
        sentence = Sentence.of(teacher.name_or_path) if isinstance(job, TextJob) and job.kind == "embedding" else None
        sources = words | {"batches": batches, "real": real}
        given = {name for name, value in sources.items() if value is not None} - {"tokenizer"}
        return cls(source, kind, job, reader, named, teacher_bits, frozenset(given), text, sentence)

    def knowledge(self, row: Method) -> tuple[str, ...]:
        """Words about the model that a run of it has used."""
        return used(self.job, self.corpus, row.inputs == language.TEXT) if isinstance(self.job, TextJob) else ()

    def zero_shot(self, row: Method) -> bool:
        """Whether a run of it sees no real data, as far as is known: nobody knows where a corpus without facts is
        from."""
        return row.zero_shot and (row.inputs != language.TEXT or self.corpus is None or self.corpus.zero_shot)

    def bits(self, config: str | QuantConfig | None) -> str | QuantConfig:
        """The configuration that was given, or the usual one of such a model, which is told."""
        if config is not None:
            return config
        usual, meaning = usual_bits(self.model, self.job.kind if isinstance(self.job, TextJob) else "image")
        say(f"no bits were given: {usual}, {meaning}")
        return usual

    def choose(
        self, method: str | Callable[..., nn.Module], config: str | QuantConfig, effort: Effort = "default"
    ) -> Method:
        """The row of that name, or of "auto"; a callable becomes one. Raises ValueError, listing what there is."""
        if callable(method):
            name = str(getattr(method, "__name__", "own"))
            if name == "teacher" or name in {**language.METHODS, **vision.METHODS}:
                raise ValueError(f"your method is called {name}, which is another's name in tables: rename it")
            return Method(name if name.isidentifier() else "own", "", method, OWN, zero_shot=False)
        if isinstance(self.job, TextJob):
            with unchanged(*self.untouched()):
                if method == "auto":
                    method = language.auto(self.job.kind, configured(self.job, config), effort)
            return language.find(method, self.job.start, Size.of(config) or QuantConfig.given(config))
        chosen = choice.auto(self.job.teacher, presets.bits_of(config)) if method == "auto" else method
        return choice.find(chosen, self.job.teacher, self.job.spec)

    def check_reads(self, rows: Iterable[Method], configs: Iterable[Any]) -> None:
        """Raises ValueError for what one of the methods reads and nobody gave, and for batches that none reads: nobody
        shall believe that a student has learned from them. What else none reads is told. `configs`: sizes read text."""
        of_all = list(rows)
        rows = [row for row in of_all if row.inputs != OWN]
        readers_of_text = [row for row in rows if row.inputs == language.TEXT]
        readers = {
            "batches": [row for row in rows if row.name == GIVEN],
            "real": [row for row in rows if not row.zero_shot and row.name != GIVEN],
            **dict.fromkeys(("generator", "corpus", "prompts", "base"), readers_of_text),
            "text_pair": [row for row in rows if row.inputs not in (language.NOTHING, language.OWN)],
            "teacher_bits": [row for row in rows if row.budgets],
        }
        for name, meaning in (("batches", "batches of your own"), ("real", "real data")):
            if readers[name] and name not in self.given:
                raise ValueError(f"{readers[name][0].name} reads {meaning}, and none were given: give {name}=...")
        if isinstance(self.job, TextJob) and readers["text_pair"]:
            _ = self.job.words
        if len(rows) < len(of_all):
            return
        text = ("generator", "prompts", "base", "text_pair") if any(map(Size.of, configs)) else ()
        unread = {name for name in self.given if not readers[name]}.difference(text)
        names = ", ".join(dict.fromkeys(row.name for row in rows))
        if "batches" in unread:
            raise ValueError(f"batches are read by method={GIVEN!r} alone, not by {names}: name it, or leave them off")
        if unread:
            say(f"{', '.join(sorted(unread))}: not read by {names}")

    def config(
        self, row: Method | None, config: str | QuantConfig, preset: str | None
    ) -> tuple[QuantConfig, str | None]:
        """The configuration, and the name of the preset that it was made by."""
        if isinstance(self.job, TextJob):
            check_config(False, config, preset)
            return configured(self.job, config), None
        if isinstance(config, QuantConfig):
            if preset is not None:
                raise ValueError(f"preset is {preset!r}, and a QuantConfig says all itself: leave it off, or give text")
            return config, None
        if preset is None and (row is None or row.preset is None):
            ways = "give preset='brecq', 'psaq' or 'uniform', or a QuantConfig"
            raise ValueError(f"{config!r} does not say which tensors of images are rounded: {ways}")
        preset = preset or choice.preset_for(row, self.job.teacher, self.job.spec)  # type: ignore[arg-type]
        choice.tell_floats(preset, self.job.teacher, self.job.spec)
        return presets.preset_config(config, preset, self.job.teacher, self.job.spec), preset

    def prepare(self, rows: Iterable[Method], loop: Loop) -> None:
        """The model where the loop runs. If any of the methods learns, a language model in half precision stays so and
        answers in float32 (for a method of the user's own it is float32); the teacher answers in `teacher_bits`."""
        job, rows = self.job, list(rows)
        if isinstance(job, TextJob) and any(row.budgets or row.inputs == OWN for row in rows):
            if job.kind == "embedding" and loop.accelerator.is_main_process:
                say(told_pooling(self.sentence))
            keep_narrow(job.start)
            if any(row.inputs == OWN and row.name != GIVEN for row in rows):
                wide: Any = (job.start if self.named else copied(job.start)).float()
                generator = (wide, job.generator[1]) if job.generator[0] is job.start else job.generator
                job.teacher, job.start, job.generator = wide, wide, generator  # type: ignore[assignment]
            if self.teacher_bits is not None:
                if not self.named:  # from its files the weights may have moved on
                    raise ValueError("teacher_bits loads the teacher anew: give its path or id, saved as it is now")
                job.start.to(loop.accelerator.device)  # type: ignore[arg-type]
                job.answer_in(self.teacher_bits, self.source)
        self.model.to(loop.accelerator.device)

    def untouched(self) -> list[nn.Module]:
        """What was given as objects, and is to be as it was afterwards."""
        generator = self.job.generator if isinstance(self.job, TextJob) else None
        return [self.model, *([generator[0]] if isinstance(generator, tuple) else [])]

    def base(self, license: str | None) -> Base:
        """Raises ValueError for a license that is no line of text."""
        terms = {} if license is None else {"license": license}
        return base_of(self.source, license) if self.named else Base(self.name, terms)


def check_config(images: bool, config: str | QuantConfig, preset: str | None) -> None:
    """Raises ValueError for no configuration and no preset of such models, as far as these tell by themselves."""
    if images:
        presets.bits_of(config)
        if preset is not None:
            presets.check_preset(preset)
    elif preset is not None:
        raise ValueError(f"preset is {preset!r}: presets are for images; leave it off")
    else:
        _ = Size.of(config) or QuantConfig.given(config)
