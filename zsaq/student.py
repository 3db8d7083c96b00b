"""A student that knows where it comes from: it saves itself whole, publishes itself, and holds its results."""

import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from zsaq.atomic import told
from zsaq.io.loading import load as read
from zsaq.io.readers import check_readers
from zsaq.io.record import Record
from zsaq.io.saving import alone, is_main, refuse_plain, save, weight_bytes, write
from zsaq.quant.adapter import save_pretrained
from zsaq.quiet import quiet
from zsaq.report.card import Card
from zsaq.report.comparison import HUGE
from zsaq.report.hub import push_to_hub
from zsaq.train.logging import say

Score = Callable[[Any], Mapping[str, float] | float]


def finish(student: nn.Module, record: Record) -> Any:
    """The student with its record as `student.zsaq`; one of transformers then saves and publishes itself with it, and a
    plain module, unless it has ways of its own, refuses both as `zsaq.save` does.

    Methods are bound to the instance, so that its class, and what it is called in config.json, stay the teacher's.
    """
    vars(student)["zsaq"] = record
    if isinstance(student, PreTrainedModel):
        vars(student).update(save_pretrained=MethodType(save_whole, student), push_to_hub=MethodType(push, student))
    else:
        missing = [name for name in ("save_pretrained", "push_to_hub") if not hasattr(student, name)]
        # A method would pickle as its name, which the class of a plain module does not have.
        vars(student).update({name: partial(refuse_plain, student) for name in missing})
    return student


def check_saving(model: nn.Module, processor: Any) -> None:
    """Before anything is spent, what becomes of a student: of a plain module it is told. Raises ValueError for a
    processor that could not be saved beside one of transformers; None is none."""
    if isinstance(model, PreTrainedModel):
        check_readers(processor=processor)
    elif is_main():
        say(
            "a student of a plain module is for use as it is and comes back by its state_dict() (docs/saving.md): zsaq "
            "saves, publishes and exports models of transformers alone"
        )


def load(
    source: str | Path, auto_class: Any = None, *, revision: str | None = None,
    dtype: torch.dtype | Literal["auto"] = "auto", device_map: Any = None,
) -> PreTrainedModel:  # fmt: skip
    """A saved student from a folder or the Hub, verified before and after, without remote code and without pickle.

    `auto_class`: a transformers Auto class; by default the one for the architecture that was saved. `revision`: of a
    Hub repository. `dtype`: "auto" is the one that was saved. `device_map`: as in transformers. What lies beside it,
    tokenizer or image processor, results and curves, travels with it, so that its `save_pretrained` and `push_to_hub`
    write all of it again, as those of a student that `zsaq.quantize` gives. Raises ValueError, with the layer's or the
    file's name and what to do, for whatever does not fit (`zsaq.io.loading`).
    """
    model = read(source, auto_class, revision=revision, dtype=dtype, device_map=device_map)
    return finish(model, vars(model)["zsaq"])


def noted(student: nn.Module, **facts: Any) -> None:
    """Facts that only who ran it knows, added to the results that travel with the student."""
    record = vars(student)["zsaq"]
    vars(student)["zsaq"] = dataclasses.replace(record, results=dataclasses.replace(record.results, **facts))


def save_whole(student: PreTrainedModel, save_directory: str | Path, **options: Any) -> None:
    """Save the model, packed, with its tokenizer or image processor, results.json, curves and pictures: whole and read
    back, or not at all (`zsaq.save`). `options` are transformers' own; with any, as a Trainer gives them, its method
    alone writes the model, in the place of an earlier one (`zsaq.quant.placing.put`), and of a model with adapters
    these alone.
    """
    if options or vars(student).get("_hf_peft_config_loaded"):
        save_pretrained(student, save_directory, **options)
        return
    _, written = write(student, save_directory)
    record = vars(student)["zsaq"]
    if written is not None:
        vars(student)["zsaq"] = dataclasses.replace(record, results=written)


def made_whole(student: nn.Module, folder: Path) -> nn.Module:
    """A sharded student as it is loaded from `folder`, where all processes save it, on the main one; others as they
    are."""
    if not isinstance(student, PreTrainedModel) or alone(student):
        return student
    save(student, folder)
    return finish(read(folder), vars(student)["zsaq"]) if is_main() else student


def push(
    student: PreTrainedModel, repo_id: str, *, license: str | None = None, private: bool | None = None,
    token: str | None = None, revision: str | None = None, create_pr: bool = False,
) -> str:  # fmt: skip
    """Publish the student with its card in one commit; returns its url. `license`: of the float model, if its card
    names none. Raises ValueError and ConnectionError as `zsaq.push_to_hub` does."""
    results = vars(student)["zsaq"].results
    if license and (results is None or results.base is None):
        raise ValueError("nothing is known of the float model: publish with zsaq.push_to_hub and a card that tells it")
    base = dataclasses.replace(results.base, license={"license": license}) if license else None
    with tempfile.TemporaryDirectory(prefix="zsaq-") as temporary:
        folder = save(student, Path(temporary) / "model")
        card = Card.of(folder, base=base)
        return push_to_hub(folder, repo_id, card, private=private, token=token, revision=revision, create_pr=create_pr)


def saved_bytes(model: nn.Module) -> int:
    """Bytes of the model's weights as saved. Raises ValueError for one that transformers does not save."""
    if not isinstance(model, PreTrainedModel):
        return sum(tensor.nbytes for tensor in model.state_dict().values())
    with quiet(), tempfile.TemporaryDirectory(prefix="zsaq-") as folder, told(Path(folder)):
        try:
            type(model).save_pretrained(model, folder)
        except RuntimeError as error:
            if "shared" not in str(error):
                raise
            why = str(error).partition("\n")[0]
            raise ValueError(
                f"transformers does not save this {type(model).__name__}, so nothing made of it could be saved "
                f"({why}): give parameters that are shared without being declared (_tied_weights_keys) each their own"
            ) from error
        return weight_bytes(Path(folder))


def numbers(score: Score | None, model: nn.Module) -> dict[str, float]:
    """What a score answers, by name; a bare number is called "score". One that is not finite, or as good as that, is
    told and left out: a student shall not be lost for it. Raises ValueError for what is no number by a name."""
    answer: Any = {} if score is None else score(model)
    found: dict[str, float] = {}
    for name, value in (answer if isinstance(answer, Mapping) else {"score": answer}).items():
        try:
            if not isinstance(name, str) or isinstance(value, str | bytes):
                raise TypeError("it is text" if isinstance(name, str) else "its name is no text")
            number = float(value)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise ValueError(
                f"the score answers {value!r:.80} as {name!r:.80}, not a number by its name ({error}): answer a "
                "number, or several by name"
            ) from error
        if abs(number) < HUGE:
            found[name] = number
        else:
            say(f"{name} is {number}, which no table can hold: it is left out")
    return found


def last_numbers(score: Score | None, student: nn.Module) -> dict[str, float]:
    """The same of a student that nothing is kept of: what its score raises is told."""
    try:
        return numbers(score, student)
    except Exception as error:  # noqa: BLE001 (whatever it is, the student would be lost for it)
        say(f"The student could not be scored ({type(error).__name__}: {error!s:.200}): it has no numbers")
        return {}
