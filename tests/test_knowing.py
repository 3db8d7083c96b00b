"""`zsaq inspect` and `zsaq fit`, and what they read beside a model."""

from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification

import zsaq
from commands import run, told
from fine_tuned import KNOWN, STRANGE, fine_tuned, words
from language_toys import bert
from zsaq.io.base import load_base
from zsaq.report.origin import origin_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a teacher whose card names it, a student of that, and texts."""
    root, tokenizer = tmp_path_factory.mktemp("knowing"), words()
    base = bert(tokenizer)
    teacher = fine_tuned(base)
    for name, model in (("base", base), ("teacher", teacher)):
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    (root / "teacher" / "README.md").write_text(f"---\nbase_model: {root / 'base'}\nlicense: mit\n---\n")
    zsaq.save(zsaq.quantize_model(teacher, "w4a8"), root / "student", tokenizer)
    (root / "known.txt").write_text("\n".join(" ".join(KNOWN[i : i + 6]) for i in range(40)))
    (root / "strange.txt").write_text("\n".join(" ".join(STRANGE[i : i + 6]) for i in range(40)))
    return root


def test_inspect_tells_the_words_and_that_a_release_leaks_them(folder: Path) -> None:
    facts = told("inspect", folder / "teacher", "--words", "9")
    assert facts["signal"] and facts["leaks"] and facts["longest"] == 12 and facts["pairs"] is False
    assert len(facts["words"]) == 9 and set(facts["words"]) <= set(KNOWN)
    assert facts["base"] == str(folder / "base") and facts["found again in 8 bits"] == 1
    shown = run("inspect", folder / "teacher", "--base", folder / "base")
    assert shown.exit_code == 0 and "leaks these words" in shown.stdout and facts["words"][0] in shown.stdout


def test_inspect_reads_a_student_too(folder: Path) -> None:
    facts = told("inspect", folder / "student", "--base", folder / "base")
    assert facts["leaks"] and facts["moved"] == told("inspect", folder / "teacher")["moved"]
    assert "--base MODEL" in told("inspect", folder / "student", code=2)["error"]


def test_inspect_says_where_there_is_no_signal(folder: Path) -> None:
    facts = told("inspect", folder / "base", "--base", folder / "base")
    assert facts["signal"] is False and facts["leaks"] is False and facts["words"] == [] and facts["silence"]
    assert "No signal" in run("inspect", folder / "base", "--base", folder / "base").stdout


def test_inspect_saves_a_model_that_has_forgotten(folder: Path, tmp_path: Path) -> None:
    facts = told("inspect", folder / "teacher", "--forget", tmp_path / "less", "--agreement", "0.01")
    assert facts["set back"] == facts["moved"] and facts["still found"] == 0
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "less").config.num_labels == 3
    assert told("inspect", tmp_path / "less", "--base", folder / "base")["signal"] is False
    for options in (["--forget", folder / "base"], ["--forget", ""], ["--forget", tmp_path / "x", "--agreement", "2"]):
        assert told("inspect", folder / "teacher", *options, code=2)["error"]
    student = ["inspect", folder / "student", "--base", folder / "base"]
    assert "float" in told(*student, "--forget", tmp_path / "y", code=2)["error"]
    assert not (tmp_path / "x").exists() and not (tmp_path / "y").exists()


def test_fit_ranks_a_text_beside_random_tokens(folder: Path) -> None:
    own, strange = (told("fit", folder / f"{name}.txt", folder / "teacher") for name in ("known", "strange"))
    assert own["alien"] == 0 and strange["alien"] == 1 and own["random"]["texts"] == 256
    assert own["verdict"] in run("fit", folder / "known.txt", folder / "teacher").stdout.replace("\n", " ")
    alone = told("fit", folder / "known.txt", folder / "base")
    assert alone["alien"] is None and "names none" in alone["notes"][0]
    assert told("fit", folder / "known.txt", folder / "base", "--base", folder / "base")["notes"]
    for wrong in (folder / "none.txt", folder / "base", folder):
        assert told("fit", wrong, folder / "teacher", code=2)["error"]


def test_a_base_is_named_by_one_card_alone(folder: Path, tmp_path: Path) -> None:
    assert origin_of(folder / "teacher") == str(folder / "base")
    for named in ("[a, b]", "7", "''", "{a: b}", "[]"):
        (tmp_path / "README.md").write_text(f"---\nbase_model: {named}\n---\n")
        with pytest.raises(ValueError, match="give the base"):
            origin_of(tmp_path)
    (tmp_path / "README.md").write_text("---\nbase_model: [one/base]\n---\n")
    assert origin_of(tmp_path) == "one/base"


def test_a_base_that_cannot_be_loaded_is_told(folder: Path, tmp_path: Path) -> None:
    assert load_base(folder / "base").base_model is not None
    with pytest.raises(ValueError, match="is quantized"):
        load_base(folder / "student")
    for source in (tmp_path, tmp_path / "nowhere", folder / "known.txt"):
        with pytest.raises(ValueError, match="base"):
            load_base(source)
