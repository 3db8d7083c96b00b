"""The top floor: quantize a model without data, and the tables of methods. The one file that sees language and vision.

student = zsaq.quantize("path/or/id", "w4a8")
student.save_pretrained("out")  # the model, its tokenizer or image processor, results.json
"""

import copy
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, final

import torch
from accelerate.utils import set_seed
from torch import nn

from zsaq.io.record import Record
from zsaq.io.teacher import Kind, kind_of, load_teacher, processor_of, tokenizer_of
from zsaq.language import methods as language
from zsaq.language.job import TextJob
from zsaq.method import Budget, Effort, Method
from zsaq.quant.config import QuantConfig
from zsaq.quant.model import coverage
from zsaq.quant.plan import plan_of
from zsaq.report.card import base_of
from zsaq.run import Base, Data, Results, Row
from zsaq.student import finish, saved_bytes
from zsaq.train.logging import SynthesisLog, say
from zsaq.train.trainer import Loop
from zsaq.vision import choice, presets
from zsaq.vision import methods as vision
from zsaq.vision.image_spec import ImageSpec, normalisation, shown_size
from zsaq.vision.job import ImageJob
from zsaq.vision.models import spec_of

PACKAGES: Final = ("zsaq", "torch", "transformers", "accelerate")
OWN: Final = "the callable's own"  # inputs of a method that no table has
Score = Callable[[Any], Mapping[str, float] | float]


def methods() -> dict[str, dict[str, Method]]:
    """The two tables, every method by its name."""
    return {"language": language.METHODS, "vision": vision.METHODS}


@final
@dataclass(frozen=True)
class Subject:
    """What is quantized: the job that methods work on, and what reads the model's inputs, tokenizer or processor."""

    source: str
    kind: Kind
    job: TextJob | ImageJob
    reader: Any
    named: bool  # by a path or id

    @property
    def name(self) -> str:
        """An id as it is; of a folder its name alone, since results are published."""
        folder = Path(self.source).expanduser()
        return folder.resolve().name if folder.is_dir() else self.source

    @classmethod
    def of(
        cls, model: str | Path | nn.Module, *, tokenizer: Any = None, processor: Any = None,
        spec: ImageSpec | int | None = None, generator: Any = None, batches: Any = None, real: Any = None,
        text_pair: bool = False,
    ) -> "Subject":  # fmt: skip
        """Loads what is named by a path or id. Raises ValueError for what belongs to another kind of model."""
        named = not isinstance(model, nn.Module)
        teacher: Any = load_teacher(model) if named else model.eval()  # pyright: ignore[reportArgumentType]
        kind = kind_of(teacher)
        source = str(model) if named else str(vars(teacher).get("name_or_path") or f"a {type(teacher).__name__}")
        words = {"tokenizer": tokenizer, "generator": generator, "text_pair": text_pair or None}
        foreign = words if kind == "image" else {"processor": processor, "spec": spec}
        if given := [key for key, value in foreign.items() if value is not None]:
            raise ValueError(f"{', '.join(given)} is not for a {type(teacher).__name__} (of kind {kind}): leave it off")
        if kind == "image":
            reader = processor if processor is not None or not named else processor_of(source)
            if not isinstance(spec, ImageSpec):
                spec = spec_of(teacher, spec or (reader and shown_size(reader)))
            mean, deviation = normalisation(reader, spec.channels)
            job: TextJob | ImageJob = ImageJob(teacher, spec, mean, deviation, real=real, given=batches)
        else:
            reader = tokenizer if tokenizer is not None or not named else tokenizer_of(source)
            job = TextJob.of(teacher, reader, generator=generator, text_pair=text_pair, batches=batches, real=real)
        return cls(source, kind, job, reader, named)

    def choose(self, method: str | Callable[..., nn.Module], config: str | QuantConfig) -> Method:
        """The row of that name, or of "auto"; a callable becomes one. Raises ValueError, listing what there is."""
        if callable(method):
            return Method(getattr(method, "__name__", "own"), "", method, OWN, zero_shot=False)
        if isinstance(self.job, TextJob):
            chosen = language.auto(self.job.kind, self.config(None, config, None)[0]) if method == "auto" else method
            return language.find(chosen, self.job.start)
        chosen = choice.auto(self.job.teacher, presets.bits_of(config)) if method == "auto" else method
        return choice.find(chosen, self.job.teacher)

    def config(
        self, row: Method | None, config: str | QuantConfig, preset: str | None
    ) -> tuple[QuantConfig, str | None]:
        """The configuration, and the name of the preset that it was made by."""
        if isinstance(config, QuantConfig):
            return config, None
        if isinstance(self.job, TextJob):
            if preset is not None:
                raise ValueError(f"preset is {preset!r}: presets are for images; leave it off")
            return QuantConfig.parse(config), None
        assert row is not None or preset is not None
        preset = preset or choice.preset_for(row, self.job.teacher)  # type: ignore[arg-type]
        return presets.preset_config(config, preset, self.job.teacher, self.job.spec), preset

    def widen(self) -> None:
        """A language model in half precision becomes float32 before it is trained against; one that was given as an
        object is copied for that."""
        job = self.job
        if isinstance(job, TextJob) and any(p.dtype.itemsize < 4 for p in job.start.parameters()):
            wide = (job.start if self.named else copy.deepcopy(job.start)).float()
            job.teacher, job.start = (wide if job.teacher is job.start else job.teacher), wide

    def base(self, license: str | None) -> Base:
        return base_of(self.source, license) if self.named else Base(self.name, {"license": license} if license else {})


def quantize(
    model: str | Path | nn.Module, config: str | QuantConfig, *, method: str | Callable[..., nn.Module] = "auto",
    effort: Effort = "default", seed: int = 0, score: Score | None = None, data: Data | None = None,
    baselines: Sequence[str] = (), zero_shot: bool | None = None, license: str | None = None, loop: Loop | None = None,
    tokenizer: Any = None, processor: Any = None, spec: ImageSpec | None = None, preset: str | None = None,
    generator: Any = None, text_pair: bool = False, batches: Iterable[Any] | None = None, real: Any = None,
    **options: Any,
) -> Any:  # fmt: skip
    """A student of `model`, quantized as `config` says by `method`, without any data.

    `model`: a path, a Hub id, a PreTrainedModel, or any image classifier with its `spec` (an ImageSpec); it is not
    changed. `config`: text (`QuantConfig.parse`; for images w<bits>a<bits> under a `preset`, by default the method's
    own) or a QuantConfig. `method`: a name of `zsaq.methods()`; "auto", a documented rule by kind of model and bits
    (`zsaq.language.methods.auto`, `zsaq.vision.methods.auto`); or a callable (job, config, budget, seed, loop) that
    answers a student. `options` are the method's own, such as steps=200; `effort` scales the counts that are not
    given: light takes minutes, default about an hour, best the paper's. The budget is told before it is spent.

    `tokenizer`, `processor`: of a model that is given as an object; for a path or id they are loaded. `generator`: for
    text, a path or id of any causal language model, or (model, tokenizer); `text_pair`: the teacher reads pairs of
    texts. `batches`: one's own inputs, for method "distill"; whether they are real is not known here, so the student
    is called zero-shot only if `zero_shot=True` says so. `real`: real data, for rows that end in "-real".

    `score(student)` answers numbers by name (or one), which are reported and used for nothing; with it the results
    have rows of the teacher and of `baselines`, other methods by name. `data` says what they were taken on. `license`:
    of the model, if its card names none. `loop`: how the trainer runs, and where curves and pictures go.

    The student saves itself whole (`save_pretrained`), publishes itself (`push_to_hub`) and holds
    `student.zsaq.results`. Raises ValueError for a name, an option or a preset that does not exist and for a method
    that does not suit this model, with what there is; NotFinite, which holds the last good student, where training
    diverges.
    """
    began, loop = time.perf_counter(), loop or Loop()
    subject = Subject.of(
        model, tokenizer=tokenizer, processor=processor, spec=spec, generator=generator, batches=batches, real=real,
        text_pair=text_pair,
    )  # fmt: skip
    row = subject.choose(method, config)
    budget = Budget(effort, options) if row.inputs == OWN else Budget.of(row, effort, options)
    runs = [(other, Budget.of(other, effort)) for other in (subject.choose(name, config) for name in baselines)]
    _, named_preset = subject.config(row, config, preset)
    rows = [Row("teacher", saved_bytes(subject.job.teacher), 0.0, numbers(score, subject.job.teacher))] if score else []
    student, seconds = subject.job.teacher, 0.0
    for each, spent in (*runs, (row, budget)):
        student, seconds = run(subject, each, subject.config(each, config, preset)[0], spent, seed, loop)
        size = None if each is row else saved_bytes(student)
        rows.append(Row(each.name, size, seconds, numbers(score, student)))
    accelerator = loop.accelerator
    results = Results(
        subject.name, row.name, plan_of(student).config, seed, row.zero_shot if zero_shot is None else zero_shot,
        row.inputs, tuple(rows), {"effort": effort, **budget.numbers}, named_preset, coverage(student),
        data=data if score else None, base=subject.base(license), seconds=round(time.perf_counter() - began, 2),
        machine={"device": str(accelerator.device), "threads": torch.get_num_threads(),
                 "processes": accelerator.num_processes},
        versions={name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
    )  # fmt: skip
    return finish(student, Record(results, (subject.reader,) if subject.reader is not None else (), loop.folder))


def run(
    subject: Subject, row: Method, config: QuantConfig, budget: Budget, seed: int, loop: Loop
) -> tuple[nn.Module, float]:
    """One student and its seconds, the budget told first. The teacher's flags are put back as they were."""
    if loop.accelerator.is_main_process:
        say(f"{row.name} on {subject.name}, effort {budget.effort}: {str(budget) or 'nothing to spend'}")
    if row.budgets:
        subject.widen()
    if isinstance(subject.job, ImageJob) and loop.folder is not None and find_spec("matplotlib"):
        subject.job.pictures = loop.folder / "pictures"
    teacher, wanted = subject.job.teacher, [p.requires_grad for p in subject.job.teacher.parameters()]
    teacher.to(loop.accelerator.device)
    set_seed(seed)
    began = time.perf_counter()
    try:
        with SynthesisLog(loop.accelerator, loop.every):
            student = row.fit(subject.job, config, budget, seed, loop)
    finally:
        for parameter, flag in zip(teacher.parameters(), wanted, strict=True):
            parameter.requires_grad_(flag)
    return student, round(time.perf_counter() - began, 2)


def numbers(score: Score | None, model: nn.Module) -> dict[str, float]:
    """What a score answers, by name; a bare number is called "score"."""
    answer = {} if score is None else score(model)
    return (
        {name: float(value) for name, value in answer.items()}
        if isinstance(answer, Mapping)
        else {"score": float(answer)}
    )
