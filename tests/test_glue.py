"""GLUE on tiny models: values, label order, and what is refused."""

import pytest
import torch
from accelerate import Accelerator

from glue_toys import rows, teacher, tokenizer
from zsaq.eval import TASKS, predict, score
from zsaq.eval.tasks import label_order


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
