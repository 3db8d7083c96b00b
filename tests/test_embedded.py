"""The embedded default's fast parts: its corpus, its tokenizer, its cache. Training is left to the recipe itself."""

import io
import sysconfig
import tokenize
from pathlib import Path

import pytest
import torch

RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.fixture(scope="module")
def embedded():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(RECIPES))
        from examples import embedded

        yield embedded


@pytest.fixture(scope="module")
def corpus(embedded):
    return embedded.embedded_corpus.read()


def test_every_area_is_on_both_sides(corpus):
    assert len(corpus.test) >= 600
    for side in (corpus.train, corpus.test):
        shares = [sum(row["label"] == label for row in side) / len(side) for label in range(len(corpus.names))]
        assert min(shares) > 0.005 and max(shares) < 0.3, dict(zip(corpus.names, shares, strict=True))


def test_no_sentence_is_on_two_sides(embedded, corpus):
    key = embedded.embedded_corpus.key
    train, test = ({key(row["sentence"]) for row in side} for side in (corpus.train, corpus.test))
    comments = {key(sentence) for sentence in corpus.comments}
    assert (len(train), len(test), len(comments)) == (len(corpus.train), len(corpus.test), len(corpus.comments))
    assert not train & test
    assert not comments & (train | test)
    assert len(comments) > 3000


@pytest.mark.parametrize(
    "module", ["argparse.py", "decimal.py", "asyncio/base_events.py", "string.py", "re/_parser.py"]
)
def test_comments_are_those_of_the_tokenizer(embedded, module):
    source = Path(sysconfig.get_paths()["stdlib"], module).read_text("utf8")
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    alone = [t.string for t in tokens if t.type == tokenize.COMMENT and t.line.lstrip().startswith("#")]
    comments = [line for run in embedded.embedded_corpus.comments(source) for line in run.split("\n")]
    assert comments == [text.lstrip("#! ") for text in alone]


def test_comments_joins_lines_and_looks_through_strings(embedded):
    source = 'x = """\n# not this\n"""\n# one\n  # two "quoted\ny = "# nor this"  # nor a remark beside code\n# three\n'
    assert embedded.embedded_corpus.comments(source) == ['one\ntwo "quoted', "three"]


def test_sentences_leave_code_out(embedded):
    text = "Return the sum of all numbers given.  It is zero\nif there are none of them.\n\n>>> total([1])\n1\n\nShort."
    sentences = list(embedded.embedded_corpus.sentences(text))
    assert sentences == ["Return the sum of all numbers given.", "It is zero if there are none of them."]


def test_a_library_without_sources_is_an_error(embedded, tmp_path):
    with pytest.raises(ValueError, match="too little prose"):
        embedded.embedded_corpus.read(tmp_path)


def test_tokenizer_is_deterministic_and_comes_back(embedded, tmp_path):
    training = embedded.embedded_training
    sentences = ["The quick brown fox jumps.", "The lazy dog is jumping over it."]
    tokenizer = training.train_tokenizer(sentences)
    assert tokenizer.get_vocab() == training.train_tokenizer(sentences).get_vocab()
    ids = tokenizer("THE dog, over a box")["input_ids"]
    assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    tokenizer.save_pretrained(tmp_path)
    assert embedded.AutoTokenizer.from_pretrained(tmp_path)("THE dog, over a box")["input_ids"] == ids


def test_prepare_trains_once(embedded, tmp_path, monkeypatch):
    training, lines = embedded.embedded_training, []
    row = {"sentence": "A thread waits for a lock.", "label": 1}
    rows = [row, {"sentence": "Files are opened by their names.", "label": 0}]
    tiny = embedded.embedded_corpus.Corpus(["files", "threads"], rows, rows, ["We wait here because of a lock."])
    monkeypatch.setattr(embedded.embedded_corpus, "read_corpus", lambda: tiny)
    recipe = training.Recipe(width=32, layers=1, init=0.1, epochs=2, lr=1e-3, size=2)
    monkeypatch.setattr(training, "TEACHER", recipe)
    monkeypatch.setattr(training, "GENERATOR", recipe)
    state = torch.get_rng_state()
    default = embedded.prepare(tmp_path, lines.append)
    assert any("teacher: step" in line for line in lines)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(embedded, "make", None)
    again = embedded.prepare(tmp_path, lines.append)
    assert (again.test, again.unlabeled, again.names) == (rows, [r["sentence"] for r in rows], tiny.names)
    assert not again.teacher.training and again.teacher.config.id2label == {0: "files", 1: "threads"}
    for old, new in ((default.teacher, again.teacher), (default.generator, again.generator)):
        assert all(torch.equal(a, new.state_dict()[name]) for name, a in old.state_dict().items())
    out = default.generator.generate(torch.tensor([[default.tokenizer.bos_token_id]]), max_new_tokens=4)
    assert out.shape[1] <= 5
