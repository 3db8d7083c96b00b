"""GLUE on tiny models and tiny files: values, label order, errors, the command line, several processes."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from accelerate import Accelerator
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from zsaq.eval import TASKS, predict, read_rows, score
from zsaq.eval.glue import averages, main
from zsaq.eval.tasks import label_order

ROOT = Path(__file__).parent.parent
WORDS = "[PAD] [UNK] [CLS] [SEP] a good bad film plays well not very dull fun".split()
SENTENCES = [
    "a good film",
    "bad",
    "a very very dull film",
    "fun",
    "not good",
    "plays well a very good fun film",
    "dull",
]
Folder = Callable[..., str]


def tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    pair = "[CLS] $A [SEP] $B:1 [SEP]:1"
    special = [("[CLS]", 2), ("[SEP]", 3)]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair=pair, special_tokens=special)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", model_max_length=32)


def teacher(labels: int = 2, seed: int = 0, **config) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    small: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    settings: dict[str, Any] = {
        "vocab_size": len(WORDS),
        "max_position_embeddings": 32,
        "num_labels": labels,
        "initializer_range": 1.0,
    }
    return BertForSequenceClassification(BertConfig(**small, **settings, **config)).eval()


@pytest.fixture
def saved(tmp_path: Path) -> Folder:
    """Writes a tiny model and its tokenizer, returns the folder."""

    def save(name: str = "model", labels: int = 2, seed: int = 0, **config) -> str:
        teacher(labels, seed, **config).save_pretrained(tmp_path / name)
        tokenizer().save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return save


def rows(task: str, count: int = 7) -> list[dict]:
    """Rows of the task with labels that go round."""
    kinds = len(TASKS[task].labels) or 6
    text = [[SENTENCES[(i + k) % 7] for k in range(len(TASKS[task].columns))] for i in range(count)]
    return [dict(zip(TASKS[task].columns, text[i], strict=True), label=i % kinds, idx=i) for i in range(count)]


def write(file: Path, content: list[dict]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".parquet":
        datasets.Dataset.from_list(content).to_parquet(file)
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in content))
    else:
        lines = [list(content[0]), *[[str(value) for value in row.values()] for row in content]]
        file.write_text("".join("\t".join(line) + "\n" for line in lines))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_logits_are_in_order_and_equal_one_by_one(task: str, batch_size: int) -> None:
    model, words = teacher(TASKS[task].outputs), tokenizer()
    model.train()
    state = torch.get_rng_state()
    logits = predict(model, words, task, rows(task), batch_size=batch_size)
    assert model.training and torch.equal(state, torch.get_rng_state())
    model.eval()
    for row, logit in zip(rows(task), logits, strict=True):
        inputs = words(*[row[column] for column in TASKS[task].columns], return_tensors="pt")
        torch.testing.assert_close(model(**inputs).logits[0].detach(), logit)


@pytest.mark.parametrize("task", TASKS)
def test_score_of_the_teacher_itself(task: str) -> None:
    model = teacher(TASKS[task].outputs)
    result = score(model, tokenizer(), task, rows(task), teacher=model, accelerator=Accelerator(cpu=True))
    assert result["agreement"] == pytest.approx(1.0) and result["score"] == result["teacher_score"]
    assert result.get("kl") == (None if task == "stsb" else pytest.approx(0.0, abs=1e-7))
    names = {"mrpc": {"accuracy", "f1"}, "qqp": {"accuracy", "f1"}, "cola": {"matthews_correlation"}}
    expected = names.get(task, {"pearson", "spearmanr"} if task == "stsb" else {"accuracy"})
    assert set(result) - {"agreement", "kl", "score"} == expected | {f"teacher_{n}" for n in expected | {"score"}} - {
        ""
    }
    assert result["score"] == pytest.approx(sum(result[name] for name in expected) / len(expected))


def test_precomputed_teacher_logits_give_the_same_and_save_the_pass() -> None:
    student, other, words = teacher(seed=1), teacher(), tokenizer()
    logits = predict(other, words, "sst2", rows("sst2"))
    result = score(student, words, "sst2", rows("sst2"), teacher=logits)
    assert result == score(student, words, "sst2", rows("sst2"), teacher=other)
    guess = predict(student, words, "sst2", rows("sst2"))
    expected = (logits.softmax(1) * (logits.log_softmax(1) - guess.log_softmax(1))).sum(1).mean().item()
    assert result["kl"] == pytest.approx(expected, rel=1e-5)
    assert result["agreement"] == (logits.argmax(1) == guess.argmax(1)).double().mean().item()
    with pytest.raises(ValueError, match="run both on the same rows"):
        score(student, words, "sst2", rows("sst2"), teacher=logits[:3])


def test_a_collapsed_model_scores_nothing_on_correlations() -> None:
    for task, expected in (("cola", 0.0), ("stsb", 0.0), ("sst2", 4 / 7)):
        model = teacher(TASKS[task].outputs)
        torch.nn.init.zeros_(model.classifier.weight)
        assert score(model, tokenizer(), task, rows(task))["score"] == expected


def test_nan_logits_are_an_error() -> None:
    model = teacher()
    torch.nn.init.constant_(model.classifier.bias, float("nan"))
    with pytest.raises(ValueError, match="7 of 7 rows have nan logits"):
        score(model, tokenizer(), "sst2", rows("sst2"))


def test_label_order_follows_the_configs_names() -> None:
    names = {0: "CONTRADICTION", 1: "Entailment", 2: "neutral"}
    model = teacher(3, id2label=names, label2id={name: i for i, name in names.items()})
    order, note = label_order(TASKS["mnli"], model.config)
    assert order == [1, 2, 0] and "re-ordered" in str(note)
    raw = predict(model, tokenizer(), "mnli", rows("mnli"), order=[0, 1, 2])
    assert torch.equal(predict(model, tokenizer(), "mnli", rows("mnli")), raw[:, [1, 2, 0]])
    # A student whose config lost the names is read in its teacher's order.
    student = teacher(3)
    assert label_order(TASKS["mnli"], student.config, model.config)[0] == [1, 2, 0]
    assert score(student, tokenizer(), "mnli", rows("mnli"), teacher=model)["agreement"] == 1.0
    assert "does not name" in str(label_order(TASKS["mnli"], student.config)[1])
    ready = teacher(id2label={0: "NEG", 1: "POS"}, label2id={"NEG": 0, "POS": 1})
    assert label_order(TASKS["sst2"], ready.config) == ([0, 1], None)


def test_a_head_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="3 outputs, the model's has 2"):
        score(teacher(), tokenizer(), "mnli", rows("mnli"))
    model = teacher(id2label={0: "ham", 1: "spam"}, label2id={"ham": 0, "spam": 1})
    with pytest.raises(ValueError, match=r"\['ham', 'spam'\], GLUE's are \['negative', 'positive'\]"):
        score(model, tokenizer(), "sst2", rows("sst2"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": 2}, "row 3 has label 2, allowed is 0 to 1 or one of negative, positive"),
        ({"label": -1}, "row 3 has label -1"),
        ({"label": 0.5}, r"row 3 has label 0\.5"),
        ({"label": "good"}, "row 3 has label 'good'"),
        ({"label": None}, "row 3 has label None"),
        ({"sentence": 7}, "row 3, column 'sentence' is 7: it must be text"),
    ],
)
def test_wrong_rows_are_refused(change: dict, message: str) -> None:
    content = rows("sst2")
    content[3] |= change
    with pytest.raises(ValueError, match=message):
        score(teacher(), tokenizer(), "sst2", content)


def test_wrong_columns_empty_splits_and_unknown_tasks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"has columns \['idx', 'label', 'sentence'\] and lacks \['sentence1'"):
        score(teacher(), tokenizer(), "rte", rows("sst2"))
    with pytest.raises(ValueError, match="the split is empty"):
        score(teacher(), tokenizer(), "sst2", [])
    with pytest.raises(ValueError, match="unknown task 'sst3': give one of cola, sst2"):
        score(teacher(), tokenizer(), "sst3", rows("sst2"))
    with pytest.raises(ValueError, match=r"label 5\.5, allowed is 0 to 5"):
        score(teacher(1), tokenizer(), "stsb", [rows("stsb")[0] | {"label": 5.5}])
    with pytest.raises(ValueError, match="has 60 tokens, the model takes 32: lower max_length"):
        score(teacher(), tokenizer(), "sst2", [{"sentence": "a " * 99, "label": 0}], max_length=60)


@pytest.mark.parametrize("kind", ["parquet", "tsv", "jsonl"])
@pytest.mark.parametrize("folder", ["sst2", "."])
def test_local_files_of_every_kind(tmp_path: Path, kind: str, folder: str) -> None:
    content = [row | {"sentence": 'a "good film'} for row in rows("sst2")]
    write(tmp_path / folder / f"validation.{kind}", content[:4])
    write(tmp_path / folder / f"test.{kind}", content[4:])
    loaded = read_rows("sst2", "validation+test", tmp_path)
    assert [(row["sentence"], int(row["label"])) for row in loaded] == [(r["sentence"], r["label"]) for r in content]


def test_local_shards_label_names_and_mnlis_two_splits(tmp_path: Path) -> None:
    write(tmp_path / "mnli/validation_matched-00000-of-00002.parquet", rows("mnli", 2))
    write(tmp_path / "mnli/validation_matched-00001-of-00002.parquet", rows("mnli", 3))
    assert len(read_rows("mnli", "validation", tmp_path)) == 5
    write(tmp_path / "mnli/validation_mismatched.tsv", [row | {"label": "neutral"} for row in rows("mnli")])
    named = read_rows("mnli-mm", "validation", tmp_path)
    assert score(teacher(3), tokenizer(), "mnli-mm", named).keys() == {"accuracy", "score"}
    with pytest.raises(ValueError, match="no file for split 'dev_matched'"):
        read_rows("mnli", "dev", tmp_path)
    write(tmp_path / "mnli/validation_mismatched.jsonl", rows("mnli"))
    with pytest.raises(ValueError, match="keep one of them"):
        read_rows("mnli-mm", "validation", tmp_path)


def test_both_averages_by_hand() -> None:
    scores = dict.fromkeys(TASKS, 0.8) | {"mnli": 0.6, "mnli-mm": 0.5}
    assert averages(scores) == {
        "average_8": pytest.approx((7 * 0.8 + 0.55) / 8),
        "average_9": pytest.approx((7 * 0.8 + 1.1) / 9),
    }
    assert averages({"sst2": 0.8}) == {}


def test_the_suite_from_the_command_line(saved: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for task in TASKS.values():
        saved(f"models/{task.config}", task.outputs)
        write(tmp_path / "data" / task.config / f"validation{task.suffix}.jsonl", rows(task.name))
    model = str(tmp_path / "models/{task}")
    arguments = ["--model", model, "--teacher", model, "--task", "all", "--data_dir", str(tmp_path / "data")]
    report = main([*arguments, "--output", str(tmp_path / "out.json")])
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1]) == json.loads((tmp_path / "out.json").read_text()) == report
    assert list(report["tasks"]) == list(TASKS)
    scores = {name: row["score"] for name, row in report["tasks"].items()}
    assert report["average_8"] == averages(scores)["average_8"]
    for word in (*TASKS, "average_8", "average_9"):
        assert any(word in line for line in lines[:-1])


def test_command_line_errors(saved: Folder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown task 'wnli'"):
        main(["--model", "x", "--task", "sst2", "wnli"])
    write(tmp_path / "validation.jsonl", rows("sst2"))
    with pytest.raises(ValueError, match="is no folder"):
        main(["--model", str(tmp_path / "none"), "--task", "sst2", "--data_dir", str(tmp_path)])
    model = teacher()
    model.bert.save_pretrained(tmp_path / "headless")
    with pytest.raises(ValueError, match=r"no weights for \['classifier.bias', 'classifier.weight'\]"):
        main(["--model", str(tmp_path / "headless"), "--task", "sst2", "--data_dir", str(tmp_path)])


def test_as_a_script(saved: Folder, tmp_path: Path) -> None:
    write(tmp_path / "validation.parquet", rows("sst2"))
    arguments = ["--model", saved(), "--task", "sst2", "--data_dir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "eval/glue.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == main(arguments)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 7])  # fewer batches than processes, and an uneven share
def test_two_processes_equal_one(saved: Folder, tmp_path: Path, count: int) -> None:
    write(tmp_path / "validation.jsonl", rows("rte", count))
    arguments = ["--model", saved(), "--teacher", saved("other", seed=1), "--task", "rte"]
    arguments += ["--data_dir", str(tmp_path), "--batch_size", "2"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*launch, "eval/glue.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    values, alone = json.loads(done.stdout.splitlines()[-1])["tasks"]["rte"], main(arguments)["tasks"]["rte"]
    assert values == {k: pytest.approx(v, rel=1e-5) if isinstance(v, float) else v for k, v in alone.items()}
