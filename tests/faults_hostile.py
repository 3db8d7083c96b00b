"""Inputs that somebody wrote to do harm, or by mistake: files of a folder, sealed anew so that the manifest does not
help; texts of bits; options, seeds and paths."""

import json
import math
import random
import re
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from safetensors.torch import load_file

from faults_folders import TEXT, Sealed, text_student
from faults_tally import GONE, HOSTILE, Tally, mutants
from language_toys import PROSE, bert, wordpiece
from zsaq import Card, QuantConfig, Results, export, load, quantize, save
from zsaq.deploy.parity import verify
from zsaq.io.checksums import write_checksums
from zsaq.report.folder import report

PLAN, CONFIG, WEIGHTS = "quantization_config", "config.json", "model.safetensors"
FREE: Final = ("budget", "machine")  # of results.json: anything that JSON holds
MEANT: Final = ("layer_norm_eps",)  # of config.json: any number that is none of a mistake gives another model
RAW: Final = (b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000, b"1" * 5000, b"\0" * 64)


def reseal(folder: Path) -> None:
    write_checksums(folder)


def json_of_a_folder(root: Path, rng: random.Random, count: int) -> list[Tally]:
    """config.json with its plan, then results.json, one place spoiled at a time."""
    sealed, tallies = Sealed(root, TEXT), []
    for name, within in {"config.json": (), "its plan": (PLAN,)}.items():
        tally, data = Tally(name), json.loads(sealed.files[CONFIG])
        for label, place, value, changed in mutants(data, rng, count, within):
            if place[-1] in MEANT and type(value) in (int, float) and 0 <= value < math.inf:
                continue
            (sealed.folder / CONFIG).write_text(json.dumps(changed))
            reseal(sealed.folder)
            tally.attempt(label, sealed.same)
            sealed.restore()
        tallies.append(tally)
    for raw in RAW:
        (sealed.folder / CONFIG).write_bytes(raw)
        tallies[0].attempt(repr(raw[:20]), lambda: (reseal(sealed.folder), sealed.same())[1])
        sealed.restore()
    return [*tallies, results_of_a_folder(sealed, rng, count), weights_of_a_folder(sealed, rng, count)]


def results_of_a_folder(sealed: Sealed, rng: random.Random, count: int) -> Tally:
    """Read, put on a card and on a page. Right is what has the type that stood there."""
    tally, data = Tally("results.json"), json.loads(sealed.files["results.json"])

    def act(place: tuple[Any, ...], value: Any, changed: Any) -> Callable[[], bool]:
        def read() -> bool:
            report(sealed.folder, sealed.folder / "page.html")
            assert load(sealed.folder) is not None
            Card.of(sealed.folder)
            return place[0] in FREE or not strange(data, place, value)

        return read

    for label, place, value, changed in mutants(data, rng, count):
        (sealed.folder / "results.json").write_text(json.dumps(changed))
        tally.attempt(label, act(place, value, changed))
        sealed.restore()
    for raw in RAW:
        (sealed.folder / "results.json").write_bytes(raw)
        tally.attempt(repr(raw[:20]), lambda: Results.read(sealed.folder) is None)
        sealed.restore()
    return tally


def strange(data: Any, place: tuple[Any, ...], value: Any) -> bool:
    """Whether `value` has another type than what stood there. None and what is gone may stand for what is not known."""
    for key in place:
        data = data[key]
    if value is None or value is GONE or data is None:
        return False
    numbers = isinstance(value, int | float) and isinstance(data, int | float)
    return type(value) is not type(data) and not (
        numbers and not isinstance(value, bool) and not isinstance(data, bool)
    )


def weights_of_a_folder(sealed: Sealed, rng: random.Random, count: int) -> Tally:
    """The header of the weights, and the numbers that a float tensor holds."""
    tally, data = Tally("header of the weights"), sealed.files[WEIGHTS]
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    for label, _, _, changed in mutants(header, rng, count):
        text = json.dumps(changed).encode()
        (sealed.folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + body)
        reseal(sealed.folder)
        tally.attempt(label, sealed.same)
        sealed.restore()
    floats = [name for name, tensor in load_file(sealed.folder / WEIGHTS).items() if tensor.is_floating_point()]
    for name in rng.sample(floats, min(count // 4, len(floats))):
        for number, what in {b"\0\0\xc0\x7f": "nan", b"\0\0\x80\x7f": "inf"}.items():
            start = 8 + size + header[name]["data_offsets"][0]
            (sealed.folder / WEIGHTS).write_bytes(data[:start] + number + data[start + 4 :])
            reseal(sealed.folder)
            tally.attempt(f"{name} holds {what}", sealed.same)
            sealed.restore()
    return tally


def teachers(root: Path, rng: random.Random, count: int) -> list[Tally]:
    """A float model's folder: config.json and the files of its tokenizer, one place spoiled at a time."""
    folder, tokenizer = root / "teacher", wordpiece()
    for part in (bert(tokenizer, labels=2), tokenizer):
        part.save_pretrained(folder)
    tallies = []
    shape = {name: tuple(p.shape) for name, p in bert(tokenizer, labels=2).named_parameters()}

    def act() -> bool:
        """Whether the student reads text into tokens that it has, and has the teacher's weights."""
        student = quantize(folder, "w4a8", method="rtn")
        parts = student.zsaq.parts
        whole = {name: tuple(p.shape) for name, p in student.named_parameters() if name in shape} == shape
        rows = student.get_input_embeddings().num_embeddings
        return whole and bool(parts) and max(map(max, parts[0]([*PROSE, ""])["input_ids"])) < rows

    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        tally, former = Tally(f"a teacher's {name}"), (folder / name).read_bytes()
        for label, _, _, changed in mutants(json.loads(former), rng, count):
            (folder / name).write_text(json.dumps(changed))
            tally.attempt(label, act)
        for raw in RAW:
            (folder / name).write_bytes(raw)
            tally.attempt(repr(raw[:20]), act)
        (folder / name).write_bytes(former)
        tallies.append(tally)
    return tallies


FORM: Final = re.compile(  # what docs/configurations.md says, written down anew
    r"w([2-8]|16)a([2-8]|16)(e([2-8]|16))?([gb][1-9][0-9]*)?(-[a-z0-9]+)?", re.ASCII
)


def bits(rng: random.Random, count: int) -> Tally:
    """Texts near to what is read, of all alphabets; right is what the documented form allows."""
    tally = Tally("texts of bits")
    alphabet = string.ascii_lowercase[:7] + "wwaaeegb-" + string.digits + " +._/\u0664\uff14\u00b2\n\0"
    for _ in range(count):
        text = rng.choice(("w4a8", "w2a8g16", "w2a8-ternary", "w4a8b32", "w2a8e4", ""))
        for _ in range(rng.randrange(4)):
            at = rng.randrange(len(text) + 1)
            text = text[:at] + rng.choice(alphabet) + text[at + rng.randrange(2) :]
        tally.attempt(
            repr(text), lambda text=text: bool(QuantConfig.parse(text) and FORM.fullmatch(text.strip().lower()))
        )
    return tally


def options(rng: random.Random, count: int) -> Tally:
    """Arguments of zsaq.quantize that cannot be."""
    tally, tokenizer = Tally("options"), wordpiece()
    model = bert(tokenizer, labels=2)
    strange = [value for value in HOSTILE if value is not GONE]
    wrong: dict[str, list[Any]] = {
        "seed": [v for v in strange if v not in (0, 7)] + [2**32, 2**64, -(2**40)],
        "method": [v for v in strange if v is not None] + ["rtn ", "RTN", "genie"],
        "config": [*strange, "w4", "w1a8", "w4a4g7", "w4a8g100000"],
        "effort": [*strange, "Light"],
        "baselines": [v for v in strange if v not in ([], "", {})] + [["rtn", "nobody"]],
        "preset": [v for v in strange if v is not None],
        "spec": [v for v in strange if v is not None],
        "generator": ["no/such/folder", "/no/such/folder", "", "\0"],
        "score": [v for v in strange if v is not None],
        "data": [v for v in strange if v is not None],
        "steps": [v for v in strange if v not in (7, 10**30)],
        "lr": [v for v in strange if v not in (7, 10**30, 1.5)],
        "nonsense": strange,
        "teacher_bits": [v for v in strange if v is not None],
        "zero_shot": [v for v in strange if v is not None],
        "text_pair": [v for v in strange if v is not True],
        "license": [v for v in strange if v is not None and v not in ("x", "")],
    }
    pairs = [(name, value) for name, values in wrong.items() for value in values]
    for name, value in rng.sample(pairs, min(count, len(pairs))):
        learns = {"method": "random-qat", "steps": 1} if name in ("steps", "lr") else {"method": "rtn"}
        given: dict[str, Any] = {"config": "w4a8", "tokenizer": tokenizer, **learns, name: value}
        tally.attempt(f"{name} = {value!r}", lambda given=given: quantize(model, **given) is None)
    return tally


def paths(root: Path, rng: random.Random, count: int) -> Tally:
    """What is no folder of a student, given to whatever reads or writes one. Nothing is right but a refusal."""
    tally, student = Tally("paths"), text_student()
    (root / "empty").mkdir()
    (root / "file").write_text("x")
    (root / "loop").symlink_to("loop")
    (root / "float").mkdir()
    bert(wordpiece(), labels=2).save_pretrained(root / "float")
    strange = [
        *("", ".", "/", "\0", "a\0b", "x" * 5000, "/dev/null", "/dev/zero", "/proc/self/mem", "~nobody/x", "\ud800"),
        *("no/such", "http://localhost/x", "a b", "../" * 50, "file:///etc/passwd", "C:\\x", "-x", "*", "$HOME"),
        *(str(root / name) for name in ("empty", "file", "loop", "float", "file/below", "none")),
    ]
    deeds: dict[str, Callable[[str], Any]] = {
        "load": load,
        "export": lambda path: export(path, "onnx"),
        "verify": verify,
        "Card.of": Card.of,
        "Results.read": Results.read,
        "quantize": lambda path: quantize(path, "w4a8", method="rtn") if path != str(root / "float") else load(""),
    }
    pairs = [(deed, path) for deed in deeds for path in strange]
    for deed, path in rng.sample(pairs, min(count, len(pairs))):
        tally.attempt(f"{deed}({path[:60]!r})", lambda deed=deed, path=path: deeds[deed](path) is None)
    full = [str(root / name) for name in ("file", "loop", "float", "file/below")]
    for path in ("", ".", "/", "\0", "a\0b", "x" * 5000, "/dev/null", "/proc/self/x", "\ud800", *full):
        tally.attempt(f"save to {path[:60]!r}", lambda path=path: save(student, path) is None)
    return tally


def hostile_inputs(root: Path, rng: random.Random, count: int) -> list[Tally]:
    return [
        *json_of_a_folder(root, rng, count),
        *teachers(root, rng, count),
        bits(rng, 20 * count),
        options(rng, count),
        paths(root, rng, count),
    ]
