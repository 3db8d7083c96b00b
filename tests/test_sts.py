"""Pairs of texts with scores, from any table; the correlation of embeddings' similarities with them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import scipy.stats
import torch

import zsaq
from commands import told
from embedding_toys import encoder, sentence_files, sentence_folder
from language_toys import bert, wordpiece
from zsaq.eval import scorers
from zsaq.eval.sts import Pairs, embed, read_pairs

ONE = ["the film is good", "a bad story", "this actor plays well", "it was not, very bad"]
TWO = ["the film was good", "it is well", "that actor plays", "the film is good"]
SCORES = [4.5, 1.0, 3.0, 1.0]


def table(first: str = "sentence1", second: str = "sentence2", score: str = "score") -> list[dict[str, Any]]:
    return [{first: a, second: b, score: s} for a, b, s in zip(ONE, TWO, SCORES, strict=True)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    names = list(rows[0])
    match path.suffix:
        case ".parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case ".tsv":
            path.write_text("\n".join("\t".join(map(str, each)) for each in [names, *(r.values() for r in rows)]))
        case ".csv":
            lines = [",".join(f'"{value}"' for value in each) for each in [names, *(r.values() for r in rows)]]
            path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize("kind", ["parquet", "csv", "tsv", "jsonl"])
@pytest.mark.parametrize(
    "names", [("sentence1", "sentence2", "label"), ("text1", "text2", "score"), ("query", "passage", "relevance")]
)
def test_any_table_of_pairs_is_read(tmp_path: Path, kind: str, names: tuple[str, str, str]) -> None:
    file = write(tmp_path / "data" / f"test.{kind}", table(*names))
    for place in (file, file.parent):
        assert read_pairs(place) == Pairs(ONE, TWO, SCORES)
    assert len(read_pairs(file, limit=2)) == 2


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([{"a": "x", "b": "y"}] * 3, "cannot be told"),
        ([{"a": "x", "b": "y", "c": "z", "d": 1.0}] * 3, "cannot be told"),
        ([{"a": "x", "b": "y", "c": 2, "d": 1.0}] * 3, "cannot be told"),
        ([*table(), {"sentence1": "a", "sentence2": "b", "score": float("nan")}], "give a finite number"),
        ([*table(), {"sentence1": "a", "sentence2": "b", "score": None}], "row 4, column 'score' is None"),
        ([*table(), {"sentence1": "a", "sentence2": None, "score": 1.0}], "column 'sentence2' is None: give text"),
        (table()[1::2], r"all of its 2 scores are 1.0"),
        (table()[:1], "holds 1 rows"),
    ],
)
def test_tables_that_are_no_pairs_are_refused(tmp_path: Path, rows: list[dict[str, Any]], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read_pairs(write(tmp_path / "pairs.jsonl", rows))


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "test.jsonl", table())
    (tmp_path / "pairs.txt").write_text("x")
    (tmp_path / "broken.csv").write_text('sentence1,sentence2,score\n"a,b,1\n')
    for name, split, why in [
        ("nothing.jsonl", None, "neither a file nor a folder"),
        ("pairs.txt", None, "no table that is read here"),
        ("broken.csv", None, "no readable csv"),
        (".", "validation", "has no validation"),
    ]:
        with pytest.raises(ValueError, match=why):
            read_pairs(tmp_path / name, split)
    write(tmp_path / "test.csv", table())
    with pytest.raises(ValueError, match=r"has test\.csv, test\.jsonl for the split 'test'"):
        read_pairs(tmp_path)


def test_the_scores_are_scipys_with_ties(tmp_path: Path) -> None:
    model, tokenizer = encoder(), wordpiece()
    numbers = scorers.sts(Pairs(ONE, TWO, SCORES), model, tokenizer)(model)
    one, two = (embed(model, tokenizer, texts, batch_size=3)[0].double().numpy() for texts in (ONE, TWO))
    cosines = (one * two).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(two, axis=1)
    assert next(iter(numbers)) == "spearmanr"
    known: list[Any] = [scipy.stats.spearmanr(cosines, SCORES), scipy.stats.pearsonr(cosines, SCORES)]
    assert [numbers["spearmanr"], numbers["pearson"]] == pytest.approx([each.statistic for each in known])
    assert numbers["agreement"] == pytest.approx(1) and numbers["cosine"] == pytest.approx(1)


def test_embeddings_are_the_models_own_whatever_the_batch(tmp_path: Path) -> None:
    tokenizer = wordpiece()
    model: Any = type(encoder()).from_pretrained(sentence_folder(tmp_path))
    texts = [*ONE, ONE[0]]
    vectors, cut = embed(model, tokenizer, texts, batch_size=2)
    for text, vector in zip(texts, vectors, strict=True):
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        torch.testing.assert_close(vector, torch.nn.functional.normalize(states.mean(0), dim=0))
    assert cut == 0 and embed(model, tokenizer, ["the film " * 20, "a"])[1] == 1


def test_texts_that_are_cut_are_told_and_broken_models_refused(tmp_path: Path) -> None:
    said: list[str] = []
    model, tokenizer = encoder(), wordpiece()
    scorers.sts(Pairs(["good " * 50, "a", "b"], ["bad", "a story", "film"], [1.0, 2.0, 3.0]), None, tokenizer,
                tell=said.append)(model)  # fmt: skip
    assert any("1 of 6 texts are longer than the model reads, and were cut" in note for note in said)
    with torch.no_grad():
        model.encoder.layer[0].attention.self.query.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="embeddings are nan or infinite"):
        scorers.sts(Pairs(ONE, TWO, SCORES), None, tokenizer)(model)
    with pytest.raises(ValueError, match="answers logits, and similarities are of embeddings"):
        scorers.sts(Pairs(ONE, TWO, SCORES), None, tokenizer)(bert(tokenizer))


def test_texts_are_lowered_where_the_files_say_so(tmp_path: Path) -> None:
    folder = sentence_folder(tmp_path)
    (sentence_files(folder) / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
    model: Any = type(encoder()).from_pretrained(folder)
    vectors, _ = embed(model, wordpiece(), ["The Film", "the film"])
    assert torch.equal(vectors[0], vectors[1])


def test_the_commands(tmp_path: Path) -> None:
    teacher, pairs = sentence_folder(tmp_path / "teacher"), write(tmp_path / "stsb" / "test.tsv", table())
    zsaq.quantize(teacher, "w4a8", method="rtn").save_pretrained(tmp_path / "student")
    facts = told("evaluate", str(tmp_path / "student"), "--sts", str(pairs), "--teacher", str(teacher), "--record")
    assert facts["score"] == "spearmanr" and facts["spearmanr"] > 0.9
    assert {"pearson", "agreement", "cosine"} <= facts.keys()
    assert facts["teacher_cosine"] == pytest.approx(1) and facts["data"]["name"] == "test.tsv"
    recorded = json.loads((tmp_path / "student" / "results.json").read_text())
    assert recorded["rows"][-1]["scores"]["spearmanr"] == facts["spearmanr"]
    compared = told(
        "compare", str(teacher), "--methods", "rtn,rtn-minmax", "--bits", "w4a8", "--sts", str(pairs.parent),
        "--output_dir", str(tmp_path / "runs"),
    )  # fmt: skip
    assert [row["method"] for row in compared["rows"]] == ["teacher", "rtn", "rtn-minmax"]
    assert all("spearmanr" in row for row in compared["rows"])
    wrong = told("evaluate", str(teacher), "--sts", str(pairs), "--task", "stsb", code=2)
    assert "give one of --task, --text, --images and --sts" in wrong["error"]
