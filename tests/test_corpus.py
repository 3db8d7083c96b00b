"""Synthetic text as it is kept, and read by every method."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

import zsaq
from language_toys import REAL, bert, bpe, opt, wordpiece
from zsaq import Corpus
from zsaq.language.chunks import Chunks, ChunkStream
from zsaq.language.layout import Layout
from zsaq.language.prompted import PromptedWriter
from zsaq.language.prompts import Prompts
from zsaq.language.writing import fast_dtype

TEXTS = ["a good film", "it was bad", "the story"]
PAIRS = [("a film", "a good film"), ("it", "not it")]
FACTS = {
    "generator": "toy",
    "license": "mit",
    "prompts": ["A film: `|x`"],
    "seed": 3,
    "temperature": 1.0,
    "teacher": "t",
}


@pytest.mark.parametrize("rows", [TEXTS, PAIRS])
def test_a_corpus_comes_back_and_datasets_reads_it(tmp_path: Path, rows: list[Any]) -> None:
    corpus = Corpus(rows, tuple(-1.5 * i for i in range(len(rows))), FACTS)
    folder = corpus.save(tmp_path / "c")
    again = Corpus.load(folder)
    assert list(again.rows) == rows and again.fluency == corpus.fluency and again.zero_shot
    assert again.sha256 == corpus.sha256 == again.facts["sha256"] and again.facts["generator"] == "toy"
    table = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert table["text"][:] == [row if isinstance(row, str) else row[0] for row in rows]
    card = (folder / "README.md").read_text()
    assert "license: mit" in card and "No real text was read" in card and "A film" in card
    assert corpus.save(folder) == folder, "over itself"


def test_texts_that_were_changed_are_refused_and_unknown_ones_are_no_zero_shot(tmp_path: Path) -> None:
    folder = Corpus(TEXTS, (), FACTS).save(tmp_path / "c")
    Corpus(TEXTS[::-1], (), FACTS).save(tmp_path / "d")
    (tmp_path / "d" / "train.parquet").replace(folder / "train.parquet")
    with pytest.raises(ValueError, match=r"are not those that corpus\.json tells of"):
        Corpus.load(folder)
    (folder / "corpus.json").unlink()
    assert not Corpus.load(folder).zero_shot
    unknown = Corpus(TEXTS).save(tmp_path / "e")
    assert not Corpus.load(unknown).zero_shot, "saving tells no origin"
    assert "unknown origin" in (unknown / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.txt", "a good film\n\nit was bad\nthe story\n"),
        ("t.jsonl", "\n".join(json.dumps({"text": t, "fluency": -1.0}) for t in TEXTS)),
        ("u.jsonl", "\n".join(map(json.dumps, TEXTS))),
    ],
)
def test_files_of_texts(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    corpus = Corpus.of(tmp_path / name)
    assert list(corpus.rows) == TEXTS and not corpus.zero_shot
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps({"text": a, "text_pair": b, "n": 1}) for a, b in PAIRS))
    assert list(Corpus.of(tmp_path / "p.jsonl").rows) == PAIRS
    (tmp_path / "p.txt").write_text("a film\ta good film\nit\tnot it\n")
    assert list(Corpus.of(str(tmp_path / "p.txt")).rows) == PAIRS


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("write", [str, lambda text: json.dumps(text, ensure_ascii=False)])
def test_a_text_may_hold_what_unicode_ends_lines_with(tmp_path: Path, write: Any, end: str) -> None:
    texts = ["one\u2028still one", "two\x85still two", "three\x1cstill\u2029three"]
    path = tmp_path / ("t.txt" if write is str else "t.jsonl")
    path.write_bytes(end.join(map(write, texts)).encode())
    assert Corpus.load(path).rows == texts


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("t.parquet", b"PAR1 damaged", "cannot be read as texts"),
        ("t.jsonl", b'{"label": 3}', "no column text"),
        ("t.jsonl", b"{", "cannot be read"),
        ("t.txt", b"\xff\xfe\xff", "cannot be read"),
        ("t.txt", b"a\tb\n\nc\n", "line 3 of .* has text, the first text and text_pair: give each line a text"),
        ("t.txt", b"c\na\tb\n", "line 2 of .* has text and text_pair, the first text: give"),
        ("t.txt", b"a\tb\tc\n", "line 1 of .* has text and text_pair and more"),
        (
            "t.jsonl",
            b'{"text": "a"}\n{"text": "b", "text_pair": "c"}',
            "line 2 of .* has text and text_pair, the first",
        ),
        ("t.jsonl", b'{"text": "a", "fluency": 1}\n"b"', "line 2 of .* has text, the first text and fluency"),
        ("t.txt", b"", "cannot be read"),
        ("t.jsonl", b'{"text": 3}', "a row of the corpus is 3"),
    ],
)
def test_files_that_hold_no_texts(tmp_path: Path, name: str, content: bytes, why: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=why):
        Corpus.load(tmp_path / name)
    with pytest.raises(ValueError, match=r"holds no train\.parquet"):
        Corpus.load(tmp_path)


@pytest.mark.parametrize("rows", [[], "text", [""], ["a", ("b", "c")], [("a",)], [None]])
def test_rows_that_cannot_be(rows: Any) -> None:
    with pytest.raises(ValueError, match="corpus"):
        Corpus(rows)


@pytest.mark.parametrize("source", [5, {"text": TEXTS}, [5], b"text"])
def test_what_is_no_corpus_at_all(source: Any) -> None:
    with pytest.raises(ValueError, match=r"give a path, an id on the Hub, or a list|give texts that are not empty"):
        Corpus.of(source)


def test_a_folder_of_something_else_is_not_written_over(tmp_path: Path) -> None:
    for name in ("thesis.txt", "README.md", "train.parquet", "corpus.json"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("[]")
        for place in (tmp_path / name, tmp_path):
            with pytest.raises(ValueError, match="something else than a corpus"):
                Corpus(TEXTS).save(place)
        assert (tmp_path / name / name).read_text() == "[]"


def chunks(seed: int = 0, second: tuple[str, ...] = ()) -> Chunks:
    tokenizer = bpe()
    writer = PromptedWriter(opt(tokenizer), tokenizer, max_tokens=5)
    return Chunks(writer, Prompts(("it", "a film"), "given", second), seed=seed, size=12)


def test_a_chunk_is_the_same_whenever_it_is_written() -> None:
    one, other = chunks(), chunks()
    first = [one[i] for i in range(3)]
    assert other.chunk(2)[0] == first[2] and first[0] != first[1] and chunks(1)[0] != first[0]
    assert all(len(set(rows)) == 12 and all(rows) for rows in first)
    pairs = chunks(second=("{first} so",))[0]
    assert all(len(pair) == 2 and all(pair) for pair in pairs)


def test_a_stream_of_chunks_goes_on_where_it_was() -> None:
    words = wordpiece()

    def stream() -> ChunkStream:
        return ChunkStream(chunks(), words, Layout.of(words, 32), 4, rows=24)

    whole, begun = list(islice(stream(), 14)), stream()
    for place in (0, 2, 3, 7, 13):
        fresh = stream()
        fresh.load_state_dict({"place": place})
        for batch, wanted in zip(islice(fresh, 3), whole[place:], strict=False):
            assert all(torch.equal(batch[name], wanted[name]) for name in wanted)
    assert len(list(islice(begun, 9))) == 9 and begun.state_dict() == {"place": 9} and len(begun.chunks.kept) == 2


def test_a_generator_that_writes_the_same_again_and_again_is_refused() -> None:
    stuck = chunks()
    stuck.writer.temperature = 1e-6
    with pytest.raises(ValueError, match="give other prompts, a higher temperature"):
        stuck.chunk(0)


def student(**options: Any) -> Any:
    tokenizer = wordpiece()
    return zsaq.quantize(bert(tokenizer), "w4a8", method="llm-qat", tokenizer=tokenizer, steps=2, **options)


def test_a_corpus_is_what_a_method_reads(tmp_path: Path) -> None:
    folder = Corpus(REAL, (), FACTS).save(tmp_path / "c")
    one, same = student(corpus=folder).zsaq.results, student(corpus=str(folder)).zsaq.results
    assert one.zero_shot and same.zero_shot and "16 texts" in one.knowledge[0] and "toy" in one.knowledge[0]
    assert not student(corpus=REAL).zsaq.results.zero_shot, "nobody knows where a list is from"
    assert student(corpus=REAL, zero_shot=True).zsaq.results.zero_shot
    with pytest.raises(ValueError, match="says itself what it reads"):
        student(corpus=folder, zero_shot=False)


def test_prompts_are_told_in_the_results() -> None:
    generator = (opt(bpe()), bpe())
    results = student(generator=generator, prompts=["it", "a"]).zsaq.results
    assert results.knowledge == ("prompts given", "prompt: it", "prompt: a") and results.zero_shot


def test_sixteen_bits_only_where_they_are_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False, "amx_bf16": True}, raising=False)
    assert fast_dtype() == torch.bfloat16
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False}, raising=False)
    assert fast_dtype() == torch.float32 and fast_dtype(torch.device("cuda")) is None


def test_a_generator_that_climbs_reads_no_corpus() -> None:
    tokenizer = wordpiece()
    given: dict[str, Any] = {"generator": (opt(bpe()), bpe()), "steps": 2, "method": "zsaq-paper"}
    texts: list[dict[str, Any]] = [{"corpus": REAL}, {"prompts": ["it"]}]
    for more in texts:
        with pytest.raises(ValueError, match="reads neither a corpus nor prompts: leave them off"):
            zsaq.quantize(bert(tokenizer), "w4a8", tokenizer=tokenizer, **given, **more)


@pytest.mark.parametrize("fluency", [(None, 1.0, 1.0), ("a",) * 3, (1.0,), (float("nan"),) * 3])
def test_fluency_that_is_none(fluency: Any) -> None:
    with pytest.raises(ValueError, match="a number for each row"):
        Corpus(TEXTS, fluency)
