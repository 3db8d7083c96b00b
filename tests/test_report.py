"""The page on a folder: whole, self-contained, and harmless whatever the folder holds."""

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from language_toys import bert, wordpiece
from zsaq import QuantConfig, quantize_model
from zsaq.io.checksums import seal
from zsaq.io.saving import save
from zsaq.report.folder import report
from zsaq.report.html import bars, curve, figure, page, table

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


def results(name: str = "zsaq", **more: Any) -> dict[str, Any]:
    rows = [
        {"name": "teacher", "accuracy": 0.92, "bytes": 4_000_000, "seconds": 0.0},
        {"name": name, "accuracy": 0.875, "agreement": 0.9, "bytes": 400_000, "seconds": 12.5},
    ]
    return {
        "rows": rows, "metrics": {"accuracy": "accuracy"}, "method": name, "zero_shot": True, "seed": 3,
        "data": {"name": "SST-2", "split": "validation"}, "versions": {"zsaq": "0.1.0"}, **more,
    }  # fmt: skip


def test_a_bare_folder_says_what_is_missing_and_what_makes_it(folder: Path) -> None:
    path, missing = report(folder)
    read = harmless(path.read_text(encoding="utf-8"))
    assert path == folder / "report.html"
    assert set(missing) == {"results.json", "scores", "certificate", "bench", "exports"}
    for name, command in missing.items():
        assert name in read.text and command in read.text
    assert "4-bit per channel" in read.text and "every file is what the manifest says" in read.text
    assert "bert.encoder.layer.0.attention.self.query" in read.text


def test_everything_that_lies_there_is_shown(folder: Path) -> None:
    (folder / "results.json").write_text(json.dumps(results()))
    (folder / "certificate.json").write_text(json.dumps({"agrees": False, "layers": [{"layer": "q", "gap": 2e-7}]}))
    (folder / "bench.json").write_text(
        json.dumps(
            {
                "rows": [{"runtime": "ours", "bytes": 2**21, "ms": {"1x2": {"best": 1.25}}}, 3],
                "slower": {"1x2": ["ort"]},
            }
        )
    )
    (folder / "distill.jsonl").write_text("".join(f'{{"step": {n}, "KL": {1 / n}}}\n' for n in (1, 2, 3)))
    (folder / "log_of_images.png").write_bytes(DOT)
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"1")
    seal(folder)
    path, missing = report(folder, folder.parent / "elsewhere" / "page.html")
    read = harmless(path.read_text(encoding="utf-8"))
    assert missing == {} and path.parent.name == "elsewhere"
    wanted = [
        "0.8750",
        "0.9200",
        "DISAGREES",
        "2e-07",
        "1.25 ms",
        "2.0",
        "1x2 ort",
        "distill: KL: 1 to 0.333",
        "log_of_images.png",
        "SST-2",
    ]
    assert [text for text in wanted if text not in read.text] == []
    assert "polyline" in read.tags and "img" in read.tags and "Exports: onnx" in read.text


def test_hostile_text_is_escaped_wherever_it_stands(folder: Path) -> None:
    hostile = results(EVIL, data={"name": EVIL}, versions={EVIL: EVIL}, base={"name": EVIL, "license": {EVIL: EVIL}})
    hostile["rows"][0][EVIL] = EVIL
    hostile["metrics"] = {EVIL: "accuracy"}
    (folder / "results.json").write_text(json.dumps(hostile))
    (folder / "certificate.json").write_text(json.dumps({EVIL: EVIL, "deep": {EVIL: [{EVIL: EVIL}]}}))
    (folder / "bench.json").write_text(json.dumps([EVIL]))
    name = EVIL.replace("/", "")
    (folder / f"{name}.jsonl").write_text("".join(json.dumps({"step": n, EVIL: n}) + "\n" for n in (1, 2)))
    (folder / f"{name}.png").write_bytes(DOT)
    (folder / "no-picture.png").write_text(EVIL)
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = [EVIL]
    config["quantization_config"]["left"][EVIL] = EVIL
    (folder / "config.json").write_text(json.dumps(config))
    path, _ = report(folder)
    read = harmless(path.read_text(encoding="utf-8"))
    assert read.text.count("<script>") >= 10  # shown as the text that it is
    assert "no-picture.png is no PNG" in read.text


BROKEN = [
    "{",
    "[" * 100_000,
    "\x00",
    "null",
    '{"rows": 3, "metrics": 4, "base": 5, "data": 6, "coverage": 7}',
    '{"rows": [1, {}], "metrics": {"a": 1}}',
    '{"step": 1, "rows": [{"name": [], "x": 9e300, "y": NAME}], "metrics": {"x": "y"}}'.replace("NAME", "9" * 400),
    '{"rows": [{"name": "\\ud800"}], "agrees": "\\ud800", "deep": ' + "[" * 500 + "1" + "]" * 500 + "}",
]
NAMES = ["results.json", "certificate.json", "bench.json", "steps.jsonl", "zsaq_manifest.json"]


@pytest.mark.parametrize("broken", BROKEN, ids=range(len(BROKEN)))
@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_told_and_does_not_end_the_page(folder: Path, name: str, broken: str) -> None:
    (folder / name).write_text(broken)
    path, _ = report(folder)
    read = harmless(path.read_text(encoding="utf-8"))
    assert "refused" in read.text  # what the manifest does not list, or the manifest itself


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


@pytest.mark.parametrize("content", [None, "[]", "{"])
def test_a_folder_of_nothing_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"no readable config\.json"):
        report(tmp_path)


def test_pieces() -> None:
    assert table([]) == "" and bars("x", [("a", 0.0), ("b", 0.0)]) == "" and bars("x", [("a", 1.0)]) == ""
    assert "class=n>1,024" in table([["a", "1,024"], ["b", "-"]])
    assert "class=n" not in table([["a", "1 x"]])
    points = re.search(r'points="([^"]+)"', curve("flat", [(1.0, 2.0), (2.0, 2.0)]))
    assert points and points[1] == "0.0,100.0 300.0,100.0"
    harmless(page(EVIL, [figure(EVIL, DOT), figure(EVIL, b"GIF")]))
