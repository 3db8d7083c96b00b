"""`zsaq synthesize` and `zsaq.synthesize_text`: from a teacher to a data set, and from that to a student."""

import json
import shutil
from pathlib import Path

import pytest

import zsaq
from commands import run, told
from fine_tuned import fine_tuned, words
from language_toys import bert, bpe, opt
from zsaq import Corpus
from zsaq.run import Base


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, its base, and a generator with a chat template."""
    root, tokenizer, writer = tmp_path_factory.mktemp("writing"), words(), bpe()
    base = bert(tokenizer)
    for name, model in (("sst2-teacher", fine_tuned(base)), ("base", base)):
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    writer.chat_template = "{% for m in messages %}{{ m.content[:9] }}{% endfor %}"
    for part in (opt(writer), writer):
        part.save_pretrained(root / "opt")
    (root / "opt" / "README.md").write_text("---\nlicense: mit\n---\n")
    return root


def test_from_a_teacher_to_a_data_set_to_a_student(folder: Path, tmp_path: Path) -> None:
    asked = ["--generator", folder / "opt", "--prompt", "it", "--prompt", "a film", "--n", "20", "--max_tokens", "6"]
    facts = told("synthesize", folder / "sst2-teacher", *asked, "--output_dir", tmp_path / "c")
    assert facts["rows"] == 20 and facts["prompts"] == ["it", "a film"] and facts["origin"] == "given"
    assert facts["generator"] == "opt" and facts["license"] == "mit" and facts["seed"] == 0
    again = told("synthesize", folder / "sst2-teacher", *asked, "--output_dir", tmp_path / "d", "--seed", "0")
    other = told("synthesize", folder / "sst2-teacher", *asked, "--output_dir", tmp_path / "d", "--seed", "1")
    assert again["sha256"] == facts["sha256"] != other["sha256"]
    made = ["quantize", folder / "sst2-teacher", "--method", "llm-qat", "--steps", "1", "--effort", "light"]
    student = told(*made, "--corpus", tmp_path / "c", "--output_dir", tmp_path / "s", "--license", "mit")
    results = json.loads((tmp_path / "s" / "results.json").read_text())
    assert student["zero_shot"] and facts["sha256"][:16] in results["knowledge"][0]
    shown = run("synthesize", folder / "sst2-teacher", *asked, "--output_dir", tmp_path / "c")
    assert shown.exit_code == 0 and "--corpus" in shown.stdout


def test_automatic_prompts_of_a_name_and_of_the_weights(folder: Path) -> None:
    options = {"generator": str(folder / "opt"), "max_tokens": 5}
    named = zsaq.synthesize_text(folder / "sst2-teacher", 4, **options)
    assert "film review" in named.facts["origin"] and named.facts["prompts"][0].startswith("One sentence from a film")
    known = zsaq.synthesize_text(folder / "sst2-teacher", 4, base=str(folder / "base"), **options)
    assert "words that the weights remember" in known.facts["origin"]
    lines = known.facts["prompts"]
    assert 0.3 < sum("with the words" in line for line in lines) / len(lines) < 0.7
    assert not named.text_pair and named.facts["license"] == "mit"


def test_a_generator_without_a_name_is_looked_up_nowhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("zsaq.synthesizing.base_of", lambda path: asked.append(path) or Base("x", {"license": "mit"}))
    tokenizer = bpe()
    given: dict = {"generator": (opt(tokenizer), tokenizer), "prompts": ["it"], "max_tokens": 4}
    facts = zsaq.synthesize_text(folder / "base", 2, **given).facts
    assert facts["generator"] == "OPTForCausalLM" and "license" not in facts and not asked
    assert zsaq.synthesize_text(folder / "base", 2, license="mit", **given).facts["license"] == "mit"
    given["generator"][0].name_or_path = "me/opt"
    facts = zsaq.synthesize_text(folder / "base", 2, **given).facts
    assert (facts["generator"], facts["license"], asked) == ("me/opt", "mit", ["me/opt"])


def test_pairs(folder: Path) -> None:
    pairs = zsaq.synthesize_text(
        folder / "base", 6, prompts=["it", "{first} so"], text_pair=True, generator=str(folder / "opt"), max_tokens=5
    )
    assert pairs.text_pair and len(pairs.rows) == 6 and pairs.facts["pairs"]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"n": 0}, "n is 0"), ({"n": 2.0}, "n is 2.0"), ({"seed": -1}, "seed is -1"), ({"prompts": []}, "no prompt"),
        ({"prompts": ["{first} so"]}, "text_pair"), ({"temperature": -1}, "temperature"),
        ({"max_tokens": 0}, "max_tokens 0"), ({"max_tokens": 2.5}, "max_tokens 2.5"), ({"temperature": "1"}, "'1'"),
        ({"chat": "no"}, "chat 'no'"), ({"license": 5}, "give a line of text"), ({"license": "a/b"}, "not a place"),
        ({"generator": "/nowhere/at/all"}, "generator"), ({"base": "/nowhere"}, "base"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_for(folder: Path, options: dict, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        zsaq.synthesize_text(folder / "sst2-teacher", **{"n": 4, "generator": str(folder / "opt")} | options)


def test_a_folder_of_something_else_is_refused_before_anything_is_written(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "base", tmp_path / "there")
    error = told("synthesize", folder / "base", "--output_dir", tmp_path / "there", code=2)["error"]
    assert "something else than a corpus" in error


def test_publishing_needs_a_licence() -> None:
    with pytest.raises(ValueError, match="licence is not known"):
        Corpus(["a"], (), {"generator": "x"}).push_to_hub("me/x")
