"""The metrics against scikit-learn and SciPy, and on what those leave undefined."""

import math

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zsaq.eval.metrics import (
    METRICS,
    Metric,
    accuracy,
    f1,
    kl,
    kl_divergence,
    matthews_correlation,
    pearson,
    perplexity,
    spearmanr,
)  # fmt: skip
from zsaq.eval.tasks import TASKS

PAIRS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30)
SCORES = st.lists(st.tuples(*[st.integers(-4, 4).map(lambda n: n / 3)] * 2), min_size=2, max_size=30)


@settings(max_examples=20)
@given(PAIRS)
def test_label_metrics_equal_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    guess, truth = np.array(pairs).T
    assert accuracy(guess, truth) == pytest.approx(sklearn.metrics.accuracy_score(truth, guess))
    wanted = sklearn.metrics.f1_score(truth == 1, guess == 1) if 1 in {*truth, *guess} else 0.0
    assert f1(guess, truth) == pytest.approx(wanted)
    # scikit-learn warns that one label alone has an incomplete confusion matrix.
    wanted = sklearn.metrics.matthews_corrcoef(truth, guess) if len({*truth, *guess}) > 1 else 0.0
    assert matthews_correlation(guess, truth) == pytest.approx(wanted)


@settings(max_examples=20)
@given(SCORES)
def test_correlations_equal_scipy(pairs: list[tuple[float, float]]) -> None:
    x, y = np.array(pairs).T
    constant = np.ptp(x) == 0 or np.ptp(y) == 0
    assert pearson(x, y) == pytest.approx(0.0 if constant else scipy.stats.pearsonr(x, y)[0], abs=1e-12)
    assert spearmanr(x, y) == pytest.approx(0.0 if constant else scipy.stats.spearmanr(x, y)[0], abs=1e-12)


@pytest.mark.parametrize("metric", [f1, matthews_correlation, pearson, spearmanr])
@pytest.mark.parametrize("constant", [0, 3])
def test_constant_predictions_are_worth_nothing(metric: Metric, constant: int) -> None:
    assert metric([constant] * 4, [0, 1, 1, 0]) == 0.0


def test_metrics_have_the_names_of_tasks() -> None:
    assert METRICS["accuracy"] is accuracy and {name for task in TASKS.values() for name in task.metrics} == set(
        METRICS
    )


def test_a_constant_that_rounding_spreads_is_still_constant() -> None:
    assert pearson([0.1] * 7, [0.1, 0.5, 2, 3, 1, 4, 5]) == 0.0


def test_kl_is_scipys_relative_entropy_of_teacher_to_student() -> None:
    student, teacher = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    expected = scipy.stats.entropy(teacher.softmax(1).numpy(), student.softmax(1).numpy(), axis=1)
    np.testing.assert_allclose(kl_divergence(student, teacher).numpy(), expected)
    assert kl(student, teacher) == pytest.approx(expected.mean()) and kl(teacher, teacher) == 0.0


def test_perplexity_is_exp_of_the_mean() -> None:
    assert perplexity([1.0, 2.0, 6.0]) == pytest.approx(math.exp(3)) and perplexity([1e4]) == math.inf


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_broken_outputs_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="pearson was given nan or infinite values"):
        pearson([bad, 1.0], [0.0, 1.0])


def test_columns_have_one_value_for_each_sample() -> None:
    with pytest.raises(ValueError, match="accuracy was given no samples"):
        accuracy([], [])
    with pytest.raises(ValueError, match=r"accuracy was given columns of the shapes \[\(2,\), \(1,\)\]"):
        accuracy([1, 2], [1])


def test_columns_have_the_form_that_the_metric_reads() -> None:
    for metric in (accuracy, f1, matthews_correlation, pearson, spearmanr):
        for column in (1, [[1, 2], [3, 4]]):
            with pytest.raises(ValueError, match=rf"{metric.__name__} was given columns of the shapes .*: give \(n,\)"):
                metric(column, column)
    with pytest.raises(ValueError, match=r"kl was given columns of the shapes .*: give \(n, classes\)"):
        kl([1.0, 2.0], [2.0, 1.0])
    with pytest.raises(ValueError, match="perplexity was given columns"):
        perplexity(1.0)
