"""Whatever stands in the JSON beside a model, each of its readers answers, or refuses with a sentence."""

import json
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from huggingface_hub import ModelCard

from hostile_json import mutated
from students import CONFIGS, one_thread, student_of
from test_card import CARD, RESULTS
from zsaq.io.added import BENCH, EXPORT, PARITY, check_added, sealed_export, write_added, write_export
from zsaq.io.checksums import MANIFEST, check_manifest, fingerprint
from zsaq.io.loading import load
from zsaq.io.saving import save
from zsaq.report.card import Card, license_of
from zsaq.report.card_text import eval_files, readme
from zsaq.report.comparison import RUNS, Comparison
from zsaq.report.folder import report
from zsaq.report.table import Table, code, link, markdown
from zsaq.run import LATER, Base, Data, Results, plain
from zsaq.run import RESULTS as NAME

__all__ = ["one_thread"]

FACTS: Final = {
    PARITY: {
        "agrees": True, "tolerance": 1e-5, "inputs": [{"input_ids": [1, 2]}],
        "zsaq torch": {"agrees": True, "layers": {"a": 1e-7}, "worst": {"alone": {"at": "a", "relative": 1e-8}}},
    },
    BENCH: {
        "rows": [{"runtime": "ours", "bytes": 9, "memory": 5, "ms": {"1x2": {"best": 1.5}}, "faster": {"1x2": 1.0}}],
        "slower": {"1x2": ["ort"]}, "left_out": {"x": "y"},
    },
}  # fmt: skip
RUN: Final = {
    "config": "w2a8", "method": "rtn", "seed": 0, "zero_shot": True, "seconds": 0.5, "accuracy": 0.5, "of": {"a": "b"}
}  # fmt: skip


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = save(student_of("bert", CONFIGS["w2a8"]), tmp_path_factory.mktemp("saved") / "model")
    model = fingerprint(folder)
    replace(RESULTS, config=CONFIGS["w2a8"], fingerprint=model).write(folder)
    for name, facts in FACTS.items():
        write_added(folder / name, facts, model)
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"graph")
    write_export(folder / "onnx", {"layers": {"a": "b"}, "convolutions": {}}, model)
    (folder / RUNS).write_text(json.dumps(RUN) + "\n")
    return folder, load(folder)


def card(folder: Path, model: Any) -> None:
    made = Card.of(folder)
    text = readme(made, "me/tiny-w2a8", folder, model)
    assert ModelCard(text).data.to_dict()["library_name"] == "zsaq" and text.encode()
    for written in eval_files(made).values():
        yaml.safe_load(written)


def page(folder: Path, model: Any) -> None:
    text = report(folder, folder.parent / "page.html")[0].read_text(encoding="utf-8")
    assert "<script>" not in text and "\x1b" not in text


def compared(folder: Path, model: Any) -> None:
    table = Comparison.read(folder, RUN["of"])
    table.table().to_terminal()
    table.to_csv(folder.parent / "table.csv")
    table.to_markdown().encode()


READERS: Final[dict[str, Callable[[Path, Any], Any]]] = {
    "card": card,
    "page": page,
    "results": lambda folder, _: Results.read(folder),
    "added": lambda folder, _: check_added(folder),
    "manifest": lambda folder, _: check_manifest(folder),
    "export": lambda folder, _: sealed_export(folder / "onnx"),
    "compared": compared,
    "load": lambda folder, _: load(folder),
}
FILES: Final = {
    NAME: ("results", "card", "page", "added", "load"),
    PARITY: ("page", "added", "card"),
    BENCH: ("page", "added", "card"),
    "config.json": ("load", "page", "card"),
    MANIFEST: ("manifest", "page", "load"),
    f"onnx/{EXPORT}": ("export", "page", "added"),
    RUNS: ("compared", "page"),
}


def tried(student: tuple[Path, Any], folder: Path, name: str, times: int) -> int:
    """How many of so many changes were refused; whatever is no ValueError is raised."""
    shutil.copytree(student[0], folder)
    if name == "config.json":
        (folder / MANIFEST).unlink()  # or nothing but the hash would be looked at
    rng, data, refused = random.Random(name), json.loads((folder / name).read_text()), 0
    for _ in range(times):
        (folder / name).write_text(json.dumps(mutated(data, rng)))
        for reader in FILES[name]:
            try:
                READERS[reader](folder, student[1])
            except ValueError as error:
                refused += 1
                assert len(str(error)) > 10
    return refused


@pytest.mark.parametrize("name", FILES)
def test_changed_json_is_read_or_refused(name: str, student: tuple[Path, Any], tmp_path: Path) -> None:
    assert tried(student, tmp_path / "m", name, 25 if name == "config.json" else 60) > 0 or name in (PARITY, BENCH)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_much_changed_json_is_read_or_refused(name: str, student: tuple[Path, Any], tmp_path: Path) -> None:
    tried(student, tmp_path / "m", name, 2000)


@pytest.mark.parametrize("lost", sorted(RESULTS.to_dict().keys() - LATER.keys()))
def test_results_that_lack_a_key_are_refused(lost: str, student: tuple[Path, Any], tmp_path: Path) -> None:
    data = json.loads((student[0] / NAME).read_text())
    del data[lost]
    (tmp_path / NAME).write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"has no |format_version None"):
        Results.read(tmp_path)


FOREIGN: Final = (
    "[click](javascript:alert(1))",
    "![x](https://evil.example/x.png)",
    "<img src=x onerror=alert(1)>",
    "<script>alert(1)</script>",
    "`code` **bold** ~~gone~~ $x$",
    "https://evil.example/login",
    "www.evil.example",
    "a\n---\nlicense: mit\n---\n# title",
    "a\r\n| b | c |\u2028- [x] done",
    "&lt;b&gt; &#91;a&#93;(b)",
    "\x1b[31mred\x07 \x9b31m \u202e gnirts",
    "\ud800 half",
    "': {}, [",
)


@pytest.mark.parametrize("text", FOREIGN)
def test_foreign_texts_of_a_card_are_plain_text(text: str, student: tuple[Path, Any]) -> None:
    folder, model = student
    term = text if plain(text) else "a line"  # of anything else no licence is made: see test_terms
    base = Base(text, {"license": "other", "license_name": term, "license_link": term}, revision=text, sha256=text)
    scores = tuple(replace(s, metric=text) for s in CARD.scores)
    hostile = replace(
        CARD, base=base, scores=scores, data=Data(text, split=text), recipe=text, recipe_sha256=text, language=text,
        budget={text: text}, limits=(text,), versions={text: text}, inputs=text, knowledge=(text,),
    )  # fmt: skip
    harmless = readme(CARD, "me/tiny-w2a8", folder, model)
    written = readme(hostile, "me/tiny-w2a8", folder, model)
    read, body = ModelCard(written), ModelCard(written).text
    assert read.data.to_dict()["license"] == "other" and read.data.to_dict()["library_name"] == "zsaq"
    assert written.isascii() or written.encode()
    bare = re.sub(r"`[^`]*`", "", re.sub(r"\\.", "", body))  # what is neither escaped nor a span of code
    for sign in ("](javascript", "](https://evil", "<img", "<script", "\x1b", "\x9b", "\u202e"):
        assert sign not in bare
    heads = [line for line in body.splitlines() if line.startswith("#")]
    assert heads == [line for line in ModelCard(harmless).text.splitlines() if line.startswith("#")]
    followed = "<https://evil.example/login>"  # an address may be followed where one is asked for, and shows where to
    assert (followed in body) == (text == "https://evil.example/login")
    assert not re.search(r"https://evil|www\.evil", bare.replace(followed, ""))


def test_what_may_be_followed_is_an_address_of_the_web() -> None:
    assert link("https://example.org/own?a=1#b") == "<https://example.org/own?a=1#b>"
    for text in ("javascript:alert(1)", "http://a.b", "https://a b", "https://a.b/)(", "https://a.b/<x>", "LICENSE"):
        assert not link(text).startswith("<")
    assert code("a`b\nc") == "`a'b c`" and code("") == "` `" and markdown("a~b&c") == r"a\~b\&c"


def test_a_spreadsheet_and_a_terminal_get_texts(tmp_path: Path) -> None:
    path = Table([{"a": "=HYPERLINK(1)", "b": -1.5}, {"a": "@x", "b": "-1"}]).to_csv(tmp_path / "t.csv")
    assert path.read_text().splitlines() == ["a,b", "'=HYPERLINK(1),-1.5", "'@x,-1"]
    shown = Table([{"a": "\x1b]0;title\x07x"}]).to_terminal("\x1b[31m")
    assert "\x1b" not in str(list(shown.columns[0].cells)) + str(shown.title)


@pytest.mark.parametrize(
    "front",
    ["a: [", "a: &x [*x]", "license: [mit]", "- 1", "model-index: 3", "license: !!python/name:os.system", "\xff"],
)
def test_a_card_of_no_known_form_names_no_licence(front: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(f"---\n{front}\n---\nx".encode("latin-1"))
    assert license_of(tmp_path / "README.md") == {}
