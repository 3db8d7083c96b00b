"""The files of sentence-transformers: read as a stranger's, kept by a student."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertForMaskedLM

import zsaq
from embedding_toys import LEGACY, POOLING, encoder, modules, put, sentence_files, sentence_folder
from language_toys import wordpiece
from zsaq.eval.sts import embed
from zsaq.io.checksums import read_manifest
from zsaq.io.teacher import load_teacher
from zsaq.pooling import Pooling
from zsaq.sentence import Sentence, pooling_of

NAMES = ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json", "config_sentence_transformers.json")
FLAGS = dict.fromkeys(["pooling_mode_cls_token", "pooling_mode_max_tokens", "pooling_mode_mean_tokens"], False)


@pytest.mark.parametrize(
    ("pooling", "modes"),
    [
        (POOLING, ("mean",)),
        (FLAGS | {"pooling_mode_cls_token": True}, ("cls",)),
        (FLAGS | {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, ("max", "mean")),
        (FLAGS | {"pooling_mode_lasttoken": True}, ("lasttoken",)),
        ({"embedding_dimension": 32, "pooling_mode": "weightedmean", "include_prompt": True}, ("weightedmean",)),
        ({"embedding_dimension": 32, "pooling_mode": ["mean", "cls"]}, ("mean", "cls")),
    ],
)
@pytest.mark.parametrize("kinds", [("Pooling",), ("Pooling", "Normalize")])
def test_what_the_files_say(tmp_path: Path, pooling: Any, modes: tuple[str, ...], kinds: tuple[str, ...]) -> None:
    sentence = Sentence.of(sentence_files(tmp_path, pooling, kinds))
    assert sentence is not None and sentence.pooling == Pooling(modes, len(kinds) == 2)  # type: ignore[arg-type]
    assert sentence.length == 24 and not sentence.lower and not sentence.notes
    assert pooling_of(tmp_path) == sentence.pooling


@pytest.mark.parametrize("source", ["", "a BertModel", "nowhere/at-all", "/no/such/folder"])
def test_no_files_are_the_mean(tmp_path: Path, monkeypatch, source: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert Sentence.of(source) is None and pooling_of(source) == Pooling()


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("modules.json", "{", "cannot be read"),
        ("modules.json", "[" * 100_000, "cannot be read"),
        ("modules.json", {}, "holds no list of modules"),
        ("modules.json", [3], "other code"),
        ("modules.json", [{"type": "os.system", "path": ""}], "'os.system', which is other code"),
        (
            "modules.json",
            [{"type": LEGACY + "Transformer", "path": "../.."}],
            "puts the model into",
        ),
        ("modules.json", [*modules("Transformer"), {"type": LEGACY + "Pooling", "path": "../x"}], "puts Pooling into"),
        ("modules.json", [*modules("Transformer"), {"type": LEGACY + "Pooling"}], "puts Pooling into None"),
        ("1_Pooling/config.json", {"pooling_mode": "median"}, "pooling_mode is 'median'"),
        ("1_Pooling/config.json", {"pooling_mode": []}, "pooling_mode is"),
        ("1_Pooling/config.json", {"pooling_mode": {"a": 1}}, "pooling_mode is"),
        ("1_Pooling/config.json", {"pooling_mode_cls_token": "yes"}, "pooling_mode_cls_token is 'yes'"),
        ("1_Pooling/config.json", [], "holds no JSON object"),
        ("1_Pooling/config.json", {}, "there is no config.json in it"),
        ("sentence_bert_config.json", {"max_seq_length": -1}, "max_seq_length is -1"),
        ("sentence_bert_config.json", {"max_seq_length": True}, "max_seq_length is True"),
        ("sentence_bert_config.json", {"modality_config": {"text": {"method": "push_to_hub"}}}, "modality_config is"),
        ("config_sentence_transformers.json", {"prompts": {"query": 3}}, "prompts is"),
    ],
)
def test_hostile_files_are_refused_by_whoever_reads_them(tmp_path: Path, name: str, data: Any, told: str) -> None:
    folder = sentence_folder(tmp_path / "teacher")
    put(folder, name, data)
    for read in (Sentence.of, load_teacher):
        with pytest.raises(ValueError, match=told):
            read(folder)
    student = zsaq.quantize(encoder(), "w4a8", method="rtn", tokenizer=wordpiece())
    student.save_pretrained(tmp_path / "student")
    (tmp_path / "student" / "zsaq_manifest.json").unlink()
    put(sentence_files(tmp_path / "student"), name, data)
    with pytest.raises(ValueError, match=told):
        zsaq.load(tmp_path / "student")


def test_unknown_keys_are_left_out_and_told(tmp_path: Path) -> None:
    put(sentence_files(tmp_path), "sentence_bert_config.json", {"max_seq_length": 9, "model_args": {"x": 1}, "y": {}})
    sentence = Sentence.of(tmp_path)
    assert sentence is not None and sentence.length == 9
    assert sentence.notes == ("sentence_bert_config.json has 'model_args', left out",)
    assert "model_args" not in json.dumps(dict(sentence.files))


def test_modules_behind_the_pooling_are_not_kept(tmp_path: Path) -> None:
    sentence = Sentence.of(sentence_files(tmp_path, kinds=("Pooling", "Dense", "Normalize")))
    assert sentence is not None and sentence.files == {} and "Dense, Normalize, which is not kept" in sentence.notes[0]
    assert Sentence.of(sentence_files(tmp_path / "other", kinds=())) is None


def test_a_student_keeps_the_files_through_saves_and_loads(tmp_path: Path) -> None:
    folder = sentence_folder(tmp_path / "teacher")
    zsaq.quantize(folder, "w4a8", method="rtn").save_pretrained(tmp_path / "one")
    zsaq.load(tmp_path / "one").save_pretrained(tmp_path / "two")
    for place in ("one", "two"):
        assert set(NAMES) <= set(read_manifest(tmp_path / place / "zsaq_manifest.json")["files"])
        assert Sentence.of(tmp_path / place) == Sentence.of(folder)
    put(tmp_path / "two", "1_Pooling/config.json", {"pooling_mode": "cls"})
    with pytest.raises(ValueError, match=r"1_Pooling/config\.json has"):
        zsaq.load(tmp_path / "two")


def test_a_head_that_the_config_names_is_no_hindrance(tmp_path: Path) -> None:
    """As of all-mpnet-base-v2, whose config names a masked language model."""
    folder = sentence_folder(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    put(folder, "config.json", config | {"architectures": [BertForMaskedLM.__name__]})
    assert type(load_teacher(folder)).__name__ == "BertModel"


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("mode", ["mean", "cls", "max", "lasttoken"])
def test_sentence_transformers_reads_the_student_and_gives_its_embeddings(tmp_path: Path, mode: str) -> None:
    if importlib.util.find_spec("sentence_transformers") is None:
        pytest.skip('needs sentence-transformers: pip install "zsaq[sentence]"')
    from sentence_transformers import SentenceTransformer  # pyright: ignore[reportMissingImports]

    folder = sentence_folder(tmp_path / "teacher", pooling={"embedding_dimension": 32, "pooling_mode": mode})
    student = zsaq.quantize(folder, "w4a8", method="rtn")
    student.save_pretrained(tmp_path / "student")
    texts = ["the film is good", "a story", "this actor plays well in that story and it was not bad " * 5]
    theirs = SentenceTransformer(str(tmp_path / "student"), device="cpu").encode(texts, convert_to_tensor=True)
    loaded = zsaq.load(tmp_path / "student")
    for model in (student, loaded):
        ours, cut = embed(model, wordpiece(), texts)
        torch.testing.assert_close(ours, theirs.float(), atol=1e-5, rtol=1e-4)
        assert cut == 1


@pytest.mark.parametrize("bits", ["w4a8", "w2a8"])
def test_an_encoder_without_pooler_stays_one(tmp_path: Path, bits: str) -> None:
    """As many embedding models are saved, which read none."""
    bare = type(encoder())(encoder().config, add_pooling_layer=False)
    bare.save_pretrained(tmp_path / "teacher")
    wordpiece().save_pretrained(tmp_path / "teacher")
    teacher: Any = load_teacher(sentence_files(tmp_path / "teacher"))
    assert teacher.pooler is None
    zsaq.quantize(tmp_path / "teacher", bits, method="rtn").save_pretrained(tmp_path / "student")
    student: Any = zsaq.load(tmp_path / "student")
    assert student.pooler is None and embed(student, wordpiece(), ["a film"])[0].isfinite().all()
