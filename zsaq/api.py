"""The top floor: quantize a model without data, and the tables of methods.

zsaq.quantize("path/or/id", "w4a8").save_pretrained("out")  # the model, its tokenizer or processor, results.json
"""

import dataclasses
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import nn

from zsaq.closing import closing
from zsaq.io.record import Record
from zsaq.io.teacher import unchanged
from zsaq.keys import PACKAGES, check_batches, check_names, circumstances, config_name, key_of, own_key
from zsaq.language import methods as language
from zsaq.language.costs import Cost
from zsaq.language.defaults import usual_options
from zsaq.language.job import TextJob
from zsaq.language.sam_sga import CALIBRATION
from zsaq.method import Budget, Effort, Method
from zsaq.quant.config import QuantConfig
from zsaq.quant.model import coverage
from zsaq.quant.plan import make_plan, plan_of
from zsaq.quant.share import Share
from zsaq.run import Data, Results, Row
from zsaq.student import Score, check_saving, finish, last_numbers, numbers, saved_bytes
from zsaq.subject import GIVEN, OWN, Subject, TeacherBits
from zsaq.train.checkpoint import Checkpoint
from zsaq.train.logging import SynthesisLog, say
from zsaq.train.loop import Loop
from zsaq.train.optim import NotFinite
from zsaq.train.randomness import check_seed
from zsaq.train.stages import part, stage
from zsaq.train.state import Held
from zsaq.train.widening import released, widened
from zsaq.vision import methods as vision
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.job import ImageJob


def methods() -> dict[str, dict[str, Method]]:
    """The two tables, every method by its name."""
    return {"language": language.METHODS, "vision": vision.METHODS}


def quantize(
    model: str | Path | nn.Module, config: str | QuantConfig | None = None, *,
    bits: str | float | None = None, target_mb: float | None = None,
    method: str | Callable[..., nn.Module] = "auto", effort: Effort = "default", seed: int = 0,
    score: Score | None = None, data: Data | None = None,
    baselines: Sequence[str] = (), zero_shot: bool | None = None, license: str | None = None, loop: Loop | None = None,
    tokenizer: Any = None, processor: Any = None, spec: ImageSpec | int | None = None, preset: str | None = None,
    generator: Any = None, text_pair: bool = False, batches: Iterable[Any] | None = None, real: Any = None,
    corpus: Any = None, prompts: Sequence[str] | None = None, base: str | Path | None = None,
    teacher_bits: TeacherBits | None = None, checkpoint: str | Path | None = None, checkpoint_every: int | None = None,
    resume: bool = False, **options: Any,
) -> Any:  # fmt: skip
    """A student of `model`, quantized as `config` says by `method`, without any data.

    `model`: a path, a Hub id, a PreTrainedModel, or any image classifier with its `spec` (an ImageSpec; of a model of
    transformers the side in pixels is enough); it is not changed. `config`: text (`QuantConfig.parse`; for images
    w<bits>a<bits> under a `preset`, by default the method's own) or a QuantConfig. `bits`: the same by another name, or
    a size, 3.2 for each weight, as `target_mb` is in megabytes: then the bits of each layer of a language model are
    chosen (docs/configurations.md). `method`: a name of `zsaq.methods()`; "auto", a documented rule by kind of model
    and bits (`zsaq.language.methods.auto`, `zsaq.vision.choice.auto`); or a callable (job, config, budget, seed, loop)
    that answers a student. `options` are the method's own, such as steps=200; `effort` scales the counts that are not
    given: light takes minutes, default about an hour, best the paper's. The budget is told before it is spent.

    `tokenizer`, `processor`: of a model that is given as an object; for a path or id they are loaded. `generator`: for
    text, a path or id of any causal language model, or (model, tokenizer); `text_pair`: the teacher reads pairs of
    texts. `corpus`: text that is there, of `zsaq.synthesize_text`, by path or id, or a list of texts (of unknown
    origin: the student is then called zero-shot only if `zero_shot=True` says so). Without it the generator writes:
    after `prompts`, or, if it has a chat template, after automatic ones, for which `base`, the path or id of the
    teacher's public base, helps. `teacher_bits`: a language model of a path or id answers in 8 or 4 bits (bitsandbytes)
    to save memory. `batches`: one's own inputs, for method "distill"; whether they are real is not known here, so the
    student is called zero-shot only if `zero_shot=True` says so. `real`: real data, for rows that end in "-real".

    `score(student)` answers numbers by name (or one), reported and used for nothing (without a checkpoint, what it
    raises on the student is told, and the student has no numbers); of the teacher and `baselines`,
    other methods by name, too. `data`: what was scored on. `license`: of the model, if its card names none. `loop`:
    how the trainer runs, and where the student's curves and pictures go (of images that a baseline made, none).

    `checkpoint`: a folder where the run's state is kept, every `checkpoint_every` steps, by default about every five
    minutes; a run that was stopped goes on from it with `resume=True`, bit for bit, given the same arguments. SIGTERM
    and Ctrl-C end a step, keep its state and exit with 143 or 130. The folder may go once the student is saved.

    The student saves itself whole (`save_pretrained`), publishes itself (`push_to_hub`) and has `zsaq.results`. Raises
    ValueError for a name, an option or a preset that does not exist and for a method that does not suit this model,
    with what there is, for two methods of one name and for a checkpoint of another run; NotFinite, which holds the
    last good student, where training diverges (none where a baseline's does).
    """
    began, loop = time.perf_counter(), loop or Loop()
    if checkpoint is None and (resume or checkpoint_every is not None):
        raise ValueError("resume and checkpoint_every are for a run that is kept: give its folder as checkpoint")
    check_seed(seed)
    if not isinstance(method, str | Callable):
        raise ValueError(f"method is {method!r:.80}; give a name, or a function that answers the student")
    listed = isinstance(baselines, Sequence) and not isinstance(baselines, str)
    if not listed or not all(isinstance(each, str | Callable) for each in baselines):
        raise ValueError(f"baselines is {baselines!r}; give a list of names")
    if score is not None and not callable(score):
        raise ValueError(f"score is {score!r}; give a function of a model that answers numbers by name")
    if data is not None and (score is None or not isinstance(data, Data)):
        raise ValueError("data is a zsaq.run.Data that says what score was measured on; give both, or neither")
    given: dict[str, Any] = {
        "tokenizer": tokenizer, "processor": processor, "spec": spec, "generator": generator, "batches": batches,
        "real": real, "text_pair": text_pair, "teacher_bits": teacher_bits, "corpus": corpus, "prompts": prompts,
        "base": base,
    }  # fmt: skip
    config = asked(config, bits, target_mb)
    subject = Subject.of(model, **given, shared=loop.shared)
    config = subject.bits(config)
    row = subject.choose(method, config, effort)
    known = subject.zero_shot(row) == row.zero_shot
    if zero_shot is not None and row.inputs != OWN and row.name != GIVEN and known:
        raise ValueError(f"zero_shot is for {GIVEN} and one's own methods; {row.name} says itself what it reads")
    chosen = [subject.choose(name, config, effort) for name in baselines]
    check_names([*baselines, method], [*chosen, row])
    others = list({other.name: other for other in chosen if other.name != row.name}.values())
    subject.check_reads((*others, row), [config])
    check_batches(batches, (*others, row))
    if method == "auto":
        options = usual_options(row, getattr(subject.job, "kind", None), effort) | options
    with unchanged(*subject.untouched()), released(subject.model):
        work = [
            (each, *subject.config(each, config, preset), budget_of(each, effort, options if each is row else {}))
            for each in (*others, row)
        ]
        check_saving(subject.model, processor)
        for each, plan, _, _ in work:
            tell_share(subject, each, plan, loop)
        _, _, named_preset, budget = work[-1]
        keeper = None
        if checkpoint is not None:
            key = loop.agreed(key_of(subject, given, score, effort, options, preset) | own_key(row))
            key |= {"config": config_name(config), "baselines": [other.name for other in others]}
            key |= circumstances(row, budget, seed, loop)
            keeper = Checkpoint(checkpoint, key, every=checkpoint_every, resume=resume)
        with nullcontext() if keeper is None else keeper:
            origin, size = subject.base(license), saved_bytes(subject.model)
            subject.prepare((*others, row), loop)
            with widened(subject.model):
                rows = [kept("teacher", lambda: Row("teacher", size, 0.0, numbers(score, subject.model)))]
            for other, plan, _, counts in work[:-1]:
                rows.append(kept(other.name, lambda: measured(subject, other, plan, counts, seed, loop, score)))
            student, seconds = run(subject, row, work[-1][1], budget, seed, loop)
            own_text = closing(subject, student, work[-1][1], seed, loop)
            count = last_numbers if keeper is None else numbers  # what is kept goes on from there
            rows.append(kept(row.name, lambda: Row(row.name, None, seconds, count(score, student))))
    results = Results(
        subject.name, row.name, plan_of(student).config, seed,
        subject.zero_shot(row) if zero_shot is None else zero_shot, row.inputs, tuple(rows),
        {"effort": effort, **budget.numbers}, named_preset, coverage(student),
        knowledge=subject.knowledge(row),
        own_text=own_text, data=data if score else None, base=origin,
        seconds=round(time.perf_counter() - began if keeper is None else keeper.seconds, 2),
        machine={"device": str(loop.accelerator.device), "threads": torch.get_num_threads(),
                 "processes": loop.accelerator.num_processes},
        versions={name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
    )  # fmt: skip
    return finish(student, Record(results, subject.parts, loop.folder))


def asked(
    config: str | QuantConfig | None, bits: str | float | None, target_mb: float | None
) -> str | QuantConfig | None:
    """The configuration, by the one name under which it was given; a size is a text too (`zsaq.language.size`). Raises
    ValueError for two."""
    given = [each for each in (config, bits, target_mb) if each is not None]
    if len(given) > 1:
        raise ValueError(f"config, bits and target_mb say each how to quantize: give one of {given!r:.200}")
    if target_mb is not None:
        if isinstance(target_mb, bool) or not isinstance(target_mb, int | float) or not 0 < target_mb < 1e7:
            raise ValueError(f"target_mb is {target_mb!r}; give the megabytes that the student may take, such as 100")
        return f"{target_mb:.6f}MB"
    if isinstance(bits, bool) or not isinstance(bits, float | int | str | None):
        raise ValueError(f"bits is {bits!r:.80}; give bits a weight on the whole, such as 3.2")
    return f"{bits:g}" if isinstance(bits, float | int) else config if bits is None else bits


def tell_share(subject: Subject, row: Method, config: QuantConfig, loop: Loop) -> None:
    """How much will be quantized, and what stays in floats, before anything is spent; a callable may do as it likes.

    Raises ValueError for a configuration that does not suit the model (`make_plan`).
    """
    if row.inputs != OWN:
        plan = make_plan(subject.model, config)
        if loop.accelerator.is_main_process:
            say(f"{row.name}: {Share.of(subject.model, plan.chosen, plan.left)}")


def budget_of(row: Method, effort: Effort, options: Mapping[str, Any]) -> Budget:
    """What a run takes; a callable takes any option. Raises ValueError as `Budget.of` does."""
    own = row.inputs == OWN
    return (
        dataclasses.replace(Budget.of(row, effort), numbers=dict(options)) if own else Budget.of(row, effort, options)
    )


def run(
    subject: Subject, row: Method, config: QuantConfig, budget: Budget, seed: int, loop: Loop
) -> tuple[nn.Module, float]:
    """One student and the seconds that it takes by itself, the budget told first. The teacher's flags are put back."""
    if loop.accelerator.is_main_process:
        say(f"{row.name} on {subject.name}, effort {budget.effort}: {budget.told}")
        if isinstance(subject.job, TextJob) and (cost := Cost.of(subject.job, budget, loop)) is not None:
            say(f"{row.name}: {cost}")
        if isinstance(subject.job, TextJob) and config.static:
            say(f"{row.name}: static ranges of inputs from {CALIBRATION} batches of {row.inputs}")
    if isinstance(subject.job, ImageJob):
        folder = loop.folder if find_spec("matplotlib") else None
        subject.job.pictures = folder and folder / "pictures"
    set_seed(seed)
    with unchanged(subject.model), SynthesisLog(loop.accelerator, loop.every), part(row.name) as at:
        student = row.fit(subject.job, config, budget, seed, loop)
    if not isinstance(student, nn.Module):
        raise ValueError(f"the method {row.name} answered a {type(student).__name__}; it is to answer the student")
    return student, round(at.clock.total, 2)


def measured(
    subject: Subject, row: Method, config: QuantConfig, budget: Budget, seed: int, loop: Loop, score: Score | None
) -> Row:
    """A baseline: its student goes, with what it would log and draw, its numbers stay. NotFinite names it and holds no
    student."""
    try:
        student, seconds = run(subject, row, config, budget, seed, dataclasses.replace(loop, folder=None))
    except NotFinite as error:
        raise NotFinite(f"the baseline {row.name} diverges, so leave it off: {error}") from error
    return Row(row.name, saved_bytes(student), seconds, numbers(score, student))


def kept(name: str, make: Callable[[], Row]) -> Row:
    """What `make` answers, which a run that goes on has from its checkpoint."""
    held = Held()
    with stage(f"row {name}", row=held) as at:
        if at.todo:
            held.value = dataclasses.asdict(make())
    return Row(**held.value)
