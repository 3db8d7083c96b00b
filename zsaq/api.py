"""The top floor: quantize a model without data, and the tables of methods. The one file that sees language and vision.

zsaq.quantize("path/or/id", "w4a8").save_pretrained("out")  # the model, its tokenizer or processor, results.json
"""

import copy
import dataclasses
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal, final, get_args

import torch
from accelerate.utils import set_seed
from torch import nn

from zsaq.io.record import Record
from zsaq.io.teacher import Kind, kind_of, load_teacher, name_of, processor_of, tokenizer_of, unchanged
from zsaq.language import methods as language
from zsaq.language.job import TextJob
from zsaq.method import Budget, Effort, Method
from zsaq.quant.config import QuantConfig
from zsaq.quant.model import coverage
from zsaq.quant.plan import plan_of
from zsaq.report.card import base_of
from zsaq.run import Base, Data, Results, Row
from zsaq.student import Score, finish, numbers, saved_bytes
from zsaq.train.logging import SynthesisLog, say
from zsaq.train.trainer import Loop
from zsaq.vision import choice, presets
from zsaq.vision import methods as vision
from zsaq.vision.image_spec import ImageSpec, normalisation, shown_size
from zsaq.vision.job import ImageJob
from zsaq.vision.models import spec_of

PACKAGES: Final = ("zsaq", "torch", "transformers", "accelerate")
OWN: Final = "the callable's own"  # inputs of a method that no table has
GIVEN: Final = "distill"  # the method that learns from batches of the user's
TeacherBits = Literal[4, 8]


def methods() -> dict[str, dict[str, Method]]:
    """The two tables, every method by its name."""
    return {"language": language.METHODS, "vision": vision.METHODS}


@final
@dataclass(frozen=True)
class Subject:
    """What is quantized: the job that methods work on, and what reads the model's inputs, tokenizer or processor;
    `source`: the path or id that it is known by; `named`: whether it was given by that."""

    source: str
    kind: Kind
    job: TextJob | ImageJob
    reader: Any
    named: bool
    teacher_bits: TeacherBits | None = None

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
        text_pair: bool = False, teacher_bits: TeacherBits | None = None,
    ) -> "Subject":  # fmt: skip
        """Loads what is named by a path or id. Raises ValueError for what belongs to another kind of model."""
        named = not isinstance(model, nn.Module)
        teacher: Any = load_teacher(model) if named else model  # pyright: ignore[reportArgumentType]
        kind, architecture = kind_of(teacher), type(teacher).__name__
        source = str(model) if named else str(vars(teacher).get("name_or_path") or f"a {architecture}")
        words = {
            "tokenizer": tokenizer, "generator": generator, "text_pair": text_pair or None, "teacher_bits": teacher_bits
        }  # fmt: skip
        foreign = words if kind == "image" else {"processor": processor, "spec": spec}
        if given := [key for key, value in foreign.items() if value is not None]:
            raise ValueError(f"{', '.join(given)} is not for {architecture} (of kind {kind}): leave it off")
        if teacher_bits not in (None, *get_args(TeacherBits)):
            raise ValueError(f"teacher_bits is {teacher_bits!r}; give 8 or 4, or leave it off for a teacher in floats")
        if batches is not None and not isinstance(batches, Iterable):
            raise ValueError(f"batches is {batches!r}; give an iterable of dicts of tensors")
        if kind == "image":
            reader = processor if processor is not None or not named else processor_of(source)
            spec = spec if isinstance(spec, ImageSpec) else spec_of(teacher, spec or (reader and shown_size(reader)))
            mean, deviation = normalisation(reader, spec.channels)
            job: TextJob | ImageJob = ImageJob(teacher, spec, mean, deviation, real=real, given=batches)
        else:
            reader = tokenizer if tokenizer is not None or not named else tokenizer_of(source)
            generator = str(generator) if isinstance(generator, Path) else generator
            job = TextJob.of(teacher, reader, generator=generator, text_pair=text_pair, batches=batches, real=real)
        return cls(source, kind, job, reader, named, teacher_bits)

    def choose(self, method: str | Callable[..., nn.Module], config: str | QuantConfig) -> Method:
        """The row of that name, or of "auto"; a callable becomes one. Raises ValueError, listing what there is."""
        if callable(method):
            name = str(getattr(method, "__name__", "own"))
            return Method(name if name.isidentifier() else "own", "", method, OWN, zero_shot=False)
        if isinstance(self.job, TextJob):
            chosen = language.auto(self.job.kind, self.config(None, config, None)[0]) if method == "auto" else method
            return language.find(chosen, self.job.start)
        chosen = choice.auto(self.job.teacher, presets.bits_of(config)) if method == "auto" else method
        return choice.find(chosen, self.job.teacher)

    def config(
        self, row: Method | None, config: str | QuantConfig, preset: str | None
    ) -> tuple[QuantConfig, str | None]:
        """The configuration, and the name of the preset that it was made by."""
        if isinstance(self.job, TextJob):
            if preset is not None:
                raise ValueError(f"preset is {preset!r}: presets are for images; leave it off")
            return QuantConfig.given(config), None
        if isinstance(config, QuantConfig):
            if preset is not None:
                raise ValueError(f"preset is {preset!r}, and a QuantConfig says all itself: leave it off, or give text")
            return config, None
        if preset is None and (row is None or row.preset is None):
            raise ValueError(
                f"{config!r} does not say which tensors of images are rounded: give preset='brecq', 'psaq' or "
                "'uniform', or a QuantConfig"
            )
        preset = preset or choice.preset_for(row, self.job.teacher)  # type: ignore[arg-type]
        return presets.preset_config(config, preset, self.job.teacher, self.job.spec), preset

    def prepare(self, rows: Iterable[Method], loop: Loop) -> None:
        """The model where the loop runs. If any of the methods learns, a language model in half precision becomes
        float32 for all of them (one that was given as an object is copied for that), and the teacher answers in
        `teacher_bits`."""
        job = self.job
        if isinstance(job, TextJob) and any(row.budgets or row.inputs == OWN for row in rows):
            if any(parameter.dtype.itemsize < 4 for parameter in job.start.parameters()):
                wide: Any = (job.start if self.named else copy.deepcopy(job.start)).float()
                if job.generator[0] is job.start:
                    job.generator = (wide, job.generator[1])  # pyright: ignore[reportAttributeAccessIssue]
                job.teacher = job.start = wide
            if self.teacher_bits is not None:
                if self.source.startswith("a "):
                    raise ValueError("teacher_bits loads the teacher anew, and this one has no path: give a path or id")
                job.start.to(loop.accelerator.device)  # type: ignore[arg-type]
                job.answer_in(self.teacher_bits, self.source)
        self.model.to(loop.accelerator.device)

    def untouched(self) -> list[nn.Module]:
        """What was given as objects, and is to be as it was afterwards."""
        generator = self.job.generator if isinstance(self.job, TextJob) else None
        return [self.model, *([generator[0]] if isinstance(generator, tuple) else [])]

    def base(self, license: str | None) -> Base:
        return base_of(self.source, license) if self.named else Base(self.name, {"license": license} if license else {})


def quantize(
    model: str | Path | nn.Module, config: str | QuantConfig, *, method: str | Callable[..., nn.Module] = "auto",
    effort: Effort = "default", seed: int = 0, score: Score | None = None, data: Data | None = None,
    baselines: Sequence[str] = (), zero_shot: bool | None = None, license: str | None = None, loop: Loop | None = None,
    tokenizer: Any = None, processor: Any = None, spec: ImageSpec | int | None = None, preset: str | None = None,
    generator: Any = None, text_pair: bool = False, batches: Iterable[Any] | None = None, real: Any = None,
    teacher_bits: TeacherBits | None = None, **options: Any,
) -> Any:  # fmt: skip
    """A student of `model`, quantized as `config` says by `method`, without any data.

    `model`: a path, a Hub id, a PreTrainedModel, or any image classifier with its `spec` (an ImageSpec; of a model of
    transformers the side in pixels is enough); it is not changed. `config`: text (`QuantConfig.parse`; for images
    w<bits>a<bits> under a `preset`, by default the method's own) or a QuantConfig. `method`: a name of
    `zsaq.methods()`; "auto", a documented rule by kind of model and bits (`zsaq.language.methods.auto`,
    `zsaq.vision.choice.auto`); or a callable (job, config, budget, seed, loop) that answers a student. `options` are
    the method's own, such as steps=200; `effort` scales the counts that are not given: light takes minutes, default
    about an hour, best the paper's. The budget is told before it is spent.

    `tokenizer`, `processor`: of a model that is given as an object; for a path or id they are loaded. `generator`: for
    text, a path or id of any causal language model, or (model, tokenizer); `text_pair`: the teacher reads pairs of
    texts. `teacher_bits`: a language model of a path or id answers in 8 or 4 bits (bitsandbytes) to save memory.
    `batches`: one's own inputs, for method "distill"; whether they are real is not known here, so the student
    is called zero-shot only if `zero_shot=True` says so. `real`: real data, for rows that end in "-real".

    `score(student)` answers numbers by name (or one), reported and used for nothing; of the teacher and `baselines`,
    other methods by name, too. `data`: what was scored on. `license`: of the model, if its card names none. `loop`:
    how the trainer runs, and where curves and pictures go.

    The student saves itself whole (`save_pretrained`), publishes itself (`push_to_hub`) and has `zsaq.results`. Raises
    ValueError for a name, an option or a preset that does not exist and for a method that does not suit this model,
    with what there is; NotFinite, which holds the last good student, where training diverges.
    """
    began, loop = time.perf_counter(), loop or Loop()
    subject = Subject.of(
        model, tokenizer=tokenizer, processor=processor, spec=spec, generator=generator, batches=batches, real=real,
        text_pair=text_pair, teacher_bits=teacher_bits,
    )  # fmt: skip
    row = subject.choose(method, config)
    if zero_shot and row.inputs != OWN and row.name != GIVEN:
        raise ValueError(f"zero_shot is for {GIVEN} and one's own methods; {row.name} says itself what it reads")
    others = [other for other in (subject.choose(name, config) for name in baselines) if other.name != row.name]
    with unchanged(*subject.untouched()):
        work = [
            (each, *subject.config(each, config, preset), budget_of(each, effort, options if each is row else {}))
            for each in (*others, row)
        ]
        base, size = subject.base(license), saved_bytes(subject.model)
        subject.prepare((*others, row), loop)
        rows = [Row("teacher", size, 0.0, numbers(score, subject.model))]
        student, seconds = subject.model, 0.0
        for each, plan, _, budget in work:
            student, seconds = run(subject, each, plan, budget, seed, loop)
            size = None if each is row else saved_bytes(student)
            rows.append(Row(each.name, size, seconds, numbers(score, student)))
    _, _, named_preset, budget = work[-1]
    results = Results(
        subject.name, row.name, plan_of(student).config, seed, row.zero_shot if zero_shot is None else zero_shot,
        row.inputs, tuple(rows), {"effort": effort, **budget.numbers}, named_preset, coverage(student),
        data=data if score else None, base=base, seconds=round(time.perf_counter() - began, 2),
        machine={"device": str(loop.accelerator.device), "threads": torch.get_num_threads(),
                 "processes": loop.accelerator.num_processes},
        versions={name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
    )  # fmt: skip
    return finish(student, Record(results, (subject.reader,) if subject.reader is not None else (), loop.folder))


def budget_of(row: Method, effort: Effort, options: Mapping[str, Any]) -> Budget:
    """What a run takes; a callable takes any option. Raises ValueError as `Budget.of` does."""
    own = row.inputs == OWN
    return (
        dataclasses.replace(Budget.of(row, effort), numbers=dict(options)) if own else Budget.of(row, effort, options)
    )


def run(
    subject: Subject, row: Method, config: QuantConfig, budget: Budget, seed: int, loop: Loop
) -> tuple[nn.Module, float]:
    """One student and its seconds, the budget told first. The teacher's flags are put back as they were."""
    if loop.accelerator.is_main_process:
        say(f"{row.name} on {subject.name}, effort {budget.effort}: {str(budget) or 'nothing to spend'}")
    if isinstance(subject.job, ImageJob) and loop.folder is not None and find_spec("matplotlib"):
        subject.job.pictures = loop.folder / "pictures"
    set_seed(seed)
    began = time.perf_counter()
    with unchanged(subject.model), SynthesisLog(loop.accelerator, loop.every):
        student = row.fit(subject.job, config, budget, seed, loop)
    return student, round(time.perf_counter() - began, 2)
