"""The metrics against scikit-learn and SciPy, and on what those leave undefined."""

import math

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zsaq.eval import F1, Accuracy, Agreement, KLDivergence, Matthews, Pearson, Perplexity, Spearman
from zsaq.eval.metrics import kl_divergence

PAIRS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30)
SCORES = st.lists(st.tuples(*[st.integers(-4, 4).map(lambda n: n / 3)] * 2), min_size=2, max_size=30)


def columns(pairs: list) -> dict[str, np.ndarray]:
    predictions, references = np.array(pairs).T
    return {"predictions": predictions, "references": references}


@settings(max_examples=20)
@given(PAIRS)
def test_label_metrics_equal_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    data = columns(pairs)
    guess, truth = data["predictions"], data["references"]
    accuracy = sklearn.metrics.accuracy_score(truth, guess)
    assert Accuracy().compute(**data) == {"accuracy": pytest.approx(accuracy)}
    assert Agreement().compute(**data) == {"agreement": pytest.approx(accuracy)}
    f1 = sklearn.metrics.f1_score(truth == 1, guess == 1) if 1 in {*truth, *guess} else 0.0
    assert F1().compute(**data) == {"f1": pytest.approx(f1)}
    # scikit-learn warns that one label alone has an incomplete confusion matrix.
    matthews = sklearn.metrics.matthews_corrcoef(truth, guess) if len({*truth, *guess}) > 1 else 0.0
    assert Matthews().compute(**data) == {"matthews_correlation": pytest.approx(matthews)}


@settings(max_examples=20)
@given(SCORES)
def test_correlations_equal_scipy(pairs: list[tuple[float, float]]) -> None:
    data = columns(pairs)
    x, y = data.values()
    constant = np.ptp(x) == 0 or np.ptp(y) == 0
    pearson = 0.0 if constant else scipy.stats.pearsonr(x, y)[0]
    spearman = 0.0 if constant else scipy.stats.spearmanr(x, y)[0]
    assert Pearson().compute(**data) == {"pearson": pytest.approx(pearson, abs=1e-12)}
    assert Spearman().compute(**data) == {"spearmanr": pytest.approx(spearman, abs=1e-12)}


@pytest.mark.parametrize("metric", [F1, Matthews, Pearson, Spearman])
@pytest.mark.parametrize("constant", [0, 3])
def test_constant_predictions_are_worth_nothing(metric: type, constant: int) -> None:
    (value,) = metric().compute(predictions=[constant] * 4, references=[0, 1, 1, 0]).values()
    assert value == 0.0


def test_a_constant_that_rounding_spreads_is_still_constant() -> None:
    assert Pearson().compute(predictions=[0.1] * 7, references=[0.1, 0.5, 2, 3, 1, 4, 5]) == {"pearson": 0.0}


def test_batches_add_up_and_the_metric_can_be_used_again() -> None:
    metric = Accuracy()
    metric.add_batch(predictions=[0, 1], references=[0, 0])
    metric.add(prediction=1, reference=1)
    assert metric.compute() == {"accuracy": pytest.approx(2 / 3)}
    assert metric.compute(predictions=[1], references=[1]) == {"accuracy": 1.0}


def test_kl_is_scipys_relative_entropy_of_teacher_to_student() -> None:
    student, teacher = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    expected = scipy.stats.entropy(teacher.softmax(1).numpy(), student.softmax(1).numpy(), axis=1)
    np.testing.assert_allclose(kl_divergence(student, teacher).numpy(), expected)
    result = KLDivergence().compute(predictions=student.numpy(), references=teacher.numpy())
    assert result == {"kl": pytest.approx(expected.mean())}
    assert KLDivergence().compute(predictions=teacher.numpy(), references=teacher.numpy()) == {"kl": 0.0}


def test_perplexity_is_exp_of_the_mean() -> None:
    assert Perplexity().compute(predictions=[1.0, 2.0, 6.0]) == {"perplexity": pytest.approx(math.exp(3))}
    assert Perplexity().compute(predictions=[1e4]) == {"perplexity": math.inf}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_broken_outputs_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="Pearson was given nan or infinite values"):
        Pearson().compute(predictions=[bad, 1.0], references=[0.0, 1.0])
