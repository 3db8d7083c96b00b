"""The page on a folder: whole, self-contained, and harmless whatever the folder holds."""

import base64
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from language_toys import bert, wordpiece
from zsaq import QuantConfig, quantize_model
from zsaq.io.added import BENCH, EXPORT, PARITY, write_added
from zsaq.io.checksums import MANIFEST, check_manifest, fingerprint
from zsaq.io.loading import load
from zsaq.io.saving import save
from zsaq.report.folder import report
from zsaq.run import Base, Data, Results, Row

EVIL = "<script>alert('x')</script><img src=x onerror=\"alert(1)\">"
VOID = {"meta", "img", "br", "polyline"}
DOT = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


class Reader(HTMLParser):
    """Tags, attributes and text; whether every tag is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def harmless(text: str) -> Reader:
    """Nothing that runs and nothing that is fetched."""
    read = Reader(text)
    assert not {"script", "iframe", "object", "embed", "link", "form", "base"} & set(read.tags)
    for name, value in read.attributes:
        assert not name.startswith("on")
        assert name not in ("href", "action", "srcset")
        assert name != "src" or value.startswith("data:image/png;base64,")
    assert "url(" not in text and "@import" not in text and "default-src 'none'" in text
    return read


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "student"
    tokenizer = wordpiece()
    return save(quantize_model(bert(tokenizer), QuantConfig.parse("w4a8")), folder, tokenizer)


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    target = tmp_path / "student"
    target.mkdir()
    for path in saved.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def results(folder: Path, **change: Any) -> Results:
    return replace(
        Results(
            "someone/bert", "zsaq", QuantConfig.parse("w4a8"), 3, True, "random tokens",
            (
                Row("teacher", 4_000_000, 0.0, {"accuracy": 0.92}),
                Row("zsaq", 400_000, 12.5, {"accuracy": 0.875, "agreement": 0.9}),
            ),
            data=Data("SST-2", split="validation"), versions={"zsaq": "0.1.0"}, fingerprint=fingerprint(folder),
        ),
        **change,
    )  # fmt: skip


def test_a_bare_folder_says_what_is_missing_and_what_makes_it(folder: Path) -> None:
    path, missing = report(folder)
    read = harmless(path.read_text(encoding="utf-8"))
    assert path == folder / "report.html"
    assert set(missing) == {"results.json", "scores", "parity report", "bench", "exports"}
    for name, command in missing.items():
        assert name in read.text and command in read.text
    assert "4-bit per channel" in read.text and "every file is what the manifest says" in read.text
    assert "bert.encoder.layer.0.attention.self.query" in read.text
    check_manifest(folder)
    load(folder)  # a page beside it changes nothing


TIMES = {
    "rows": [{"runtime": "ours", "bytes": 2**21, "ms": {"1x2": {"best": 1.25}}}, 3],
    "slower": {"1x2": ["ort"]},
    "threads": 7,
    "generation": {"rows": [{"runtime": "ours", "first_ms": {"best": 61.5}, "tokens_a_second": {"best": 12.5}}]},
}


def test_everything_that_lies_there_is_shown(folder: Path) -> None:
    model = fingerprint(folder)
    results(folder).write(folder)
    write_added(folder / PARITY, {"agrees": False, "layers": [{"layer": "q", "gap": 2e-7}]}, model)
    write_added(folder / BENCH, TIMES, model)
    (folder / "distill.jsonl").write_text("".join(f'{{"step": {n}, "KL": {1 / n}}}\n' for n in (1, 2, 3)))
    (folder / "log_of_images.png").write_bytes(DOT)
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"1")
    write_added(folder / "onnx" / EXPORT, {}, model)
    path, missing = report(folder, folder.parent / "elsewhere" / "page.html")
    read = harmless(path.read_text(encoding="utf-8"))
    assert missing == {} and path.parent.name == "elsewhere"
    wanted = [
        *(
            "0.8750",
            "0.9200",
            "DISAGREE",
            "2e-07",
            "1.25 ms",
            "2.0",
            "1x2 ort",
            "Threads: 7.",
            "61.5 ms",
            "12.5",
            "distill: KL: 1 to 0.333",
        ),
        *("log_of_images.png", "SST-2", " times", "random tokens", "every file is what the manifest says"),
    ]
    assert [text for text in wanted if text not in read.text] == []
    assert "polyline" in read.tags and "img" in read.tags and "Exports: onnx" in read.text


def test_what_belongs_to_another_model_is_told_and_not_shown(folder: Path) -> None:
    results(folder, fingerprint="0" * 64).write(folder)
    for name in (PARITY, BENCH):
        write_added(folder / name, {"agrees": True} | TIMES, "0" * 64)
    for name in ("onnx", "compressed-tensors"):
        (folder / name).mkdir()
        (folder / name / "model.safetensors").write_bytes(b"1")
    write_added(folder / "onnx" / EXPORT, {}, "0" * 64)
    path, missing = report(folder)
    read = harmless(path.read_text(encoding="utf-8"))
    assert set(missing) == {"results.json", "scores", "parity report", "bench", "exports"}
    assert (
        read.text.count("belongs to another model") == 4 and "compressed-tensors is not used: export.json" in read.text
    )
    assert "0.8750" not in read.text and "1.25 ms" not in read.text


def test_hostile_text_is_escaped_wherever_it_stands(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = [EVIL]
    config["quantization_config"]["left"][EVIL] = EVIL
    (folder / "config.json").write_text(json.dumps(config))
    model = fingerprint(folder)
    rows = (Row(EVIL, 1, 0.0, {EVIL: 1.0}), Row("zsaq", 1, 0.0, {EVIL: 0.5}))
    hostile = results(
        folder, rows=rows, data=Data(EVIL), versions={EVIL: EVIL}, inputs=EVIL,
        base=Base(EVIL, {"license": EVIL.replace("/", "")}),
        model=EVIL, budget={EVIL: [EVIL, {EVIL: EVIL}]}, machine={EVIL: EVIL}, knowledge=(EVIL,), preset=EVIL,
    )  # fmt: skip
    hostile.write(folder)
    write_added(folder / PARITY, {EVIL: EVIL, "deep": {EVIL: [{EVIL: EVIL}]}}, model)
    write_added(folder / BENCH, {"rows": [{"runtime": EVIL, "ms": {EVIL: {}}}], "slower": EVIL, EVIL: EVIL}, model)
    name = EVIL.replace("/", "")
    (folder / f"{name}.jsonl").write_text("".join(json.dumps({"step": n, EVIL: n}) + "\n" for n in (1, 2)))
    (folder / f"{name}.png").write_bytes(DOT)
    (folder / "no-picture.png").write_text(EVIL)
    (folder / name).mkdir()
    (folder / name / "model.onnx").write_text(EVIL)
    path, _ = report(folder)
    read = harmless(path.read_text(encoding="utf-8"))
    assert read.text.count("<script>") >= 20  # shown as the text that it is
    assert "no-picture.png is no PNG" in read.text


BROKEN = [
    "{",
    "[" * 100_000,
    "\x00",
    "null",
    '{"fingerprint": MODEL, "rows": 3, "agrees": 4, "base": 5, "data": 6, "coverage": 7}',
    '{"fingerprint": MODEL, "rows": [1, {}, {"ms": 3}, {"ms": {"a": 1}, "faster": {"a": []}}], "slower": {"a": {}}}',
    '{"fingerprint": MODEL, "step": 1, "rows": [{"name": [], "x": 9e300, "y": NUMBER, "bytes": NUMBER}]}',
    '{"fingerprint": MODEL, "rows": [{"runtime": "\\ud800"}], "agrees": "\\ud800", "deep": LISTS}',
]
NAMES = ["results.json", PARITY, BENCH, "steps.jsonl", MANIFEST]


@pytest.mark.parametrize("broken", BROKEN, ids=range(len(BROKEN)))
@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_told_and_does_not_end_the_page(folder: Path, name: str, broken: str) -> None:
    lists = "[" * 500 + "1" + "]" * 500
    broken = broken.replace("MODEL", f'"{fingerprint(folder)}"').replace("NUMBER", "9" * 400).replace("LISTS", lists)
    (folder / name).write_text(broken)
    path, missing = report(folder)
    read = harmless(path.read_text(encoding="utf-8"))
    assert ("refused" in read.text) == (name == MANIFEST)
    if not broken.startswith('{"'):
        assert "cannot be" in read.text or name == MANIFEST or (name, broken) == ("steps.jsonl", "null")
        assert name in ("steps.jsonl", MANIFEST) or len(missing) >= 5


def test_a_changed_weight_is_refused_on_the_page(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    read = harmless(report(folder)[0].read_text(encoding="utf-8"))
    assert "refused" in read.text and "model.safetensors has the sha256" in read.text


def test_a_foreign_quantization_is_told(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": EVIL}}))
    read = harmless(report(folder)[0].read_text(encoding="utf-8"))
    assert "no quantization_config of zsaq" in read.text


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "results.json", "page", "onnx/../page.htm"])
def test_a_part_of_the_student_is_no_place_for_the_page(folder: Path, name: str) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"may be a part of the student: end its name in \.html"):
        report(folder, folder / name)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert report(folder, folder.parent / "page")[0].is_file() and report(folder, folder / "page.html")[0].is_file()


@pytest.mark.parametrize("content", [None, "[]", "{"])
def test_a_folder_of_nothing_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"no readable config\.json"):
        report(tmp_path)
