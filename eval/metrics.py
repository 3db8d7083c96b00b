"""Metrics as plain functions of two columns, predictions and references, computed in float64.

All values are fractions (an accuracy of 88.2 % is 0.882), divergences are in nats. Whatever is undefined for constant
predictions (correlations, F1 without positives) is 0 and not nan: that is the value of a collapsed model. Each raises
ValueError for no samples, columns of different shapes or of another form than it tells, and values that are not finite.
"""

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Metric = Callable[..., float]


def checked(form: str) -> Callable[[Callable[..., float]], Metric]:
    """Makes a metric one of columns that were found to be whole, and of that form: "(n,)" or "(n, classes)"."""

    def whole(metric: Callable[..., float]) -> Metric:
        @wraps(metric)
        def measure(*columns: Any) -> float:
            arrays = [np.asarray(column, dtype=np.float64) for column in columns]
            shapes = [array.shape for array in arrays]
            if len(set(shapes)) != 1 or len(shapes[0]) != len(form.split()):
                raise ValueError(f"{metric.__name__} was given columns of the shapes {shapes}: give {form}, alike")
            for array in arrays:
                if not array.size:
                    raise ValueError(f"{metric.__name__} was given no samples: give at least one")
                if not np.isfinite(array).all():
                    raise ValueError(f"{metric.__name__} was given nan or infinite values: the model is broken")
            return metric(*arrays)

        return measure

    return whole


@checked("(n,)")
def accuracy(predictions: np.ndarray, references: np.ndarray) -> float:
    """Share of equal class indices, shape (n,). Of the teacher's as references, it is the agreement."""
    return float((predictions == references).mean())


@checked("(n,)")
def f1(predictions: np.ndarray, references: np.ndarray) -> float:
    """F1 of class 1 against the rest, 2 TP / (2 TP + FP + FN), shape (n,); 0 where there is no class 1 at all."""
    hits = int(((predictions == 1) & (references == 1)).sum())
    marked = int((predictions == 1).sum() + (references == 1).sum())
    return 2 * hits / marked if marked else 0.0


@checked("(n,)")
def matthews_correlation(predictions: np.ndarray, references: np.ndarray) -> float:
    """For any number of classes (R_K of Gorodkin 2004), indices of shape (n,); 0 for constant predictions."""
    _, joint = np.unique(np.concatenate([predictions, references]), return_inverse=True)
    one_hot = np.eye(joint.max() + 1)[joint]
    centred = [half - half.mean(0) for half in np.split(one_hot, 2)]
    covariance = (centred[0] * centred[1]).sum()
    spread = np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum())
    return float(covariance / spread) if spread > 0 else 0.0


@checked("(n,)")
def pearson(predictions: np.ndarray, references: np.ndarray) -> float:
    """Pearson correlation of two series of scalars, shape (n,); 0 where one of them is constant."""
    return correlation(predictions, references)


@checked("(n,)")
def spearmanr(predictions: np.ndarray, references: np.ndarray) -> float:
    """Spearman correlation: Pearson of the ranks, ties share their mean rank; 0 where one series is constant."""
    return correlation(ranks(predictions), ranks(references))


@checked("(n, classes)")
def kl(student: np.ndarray, teacher: np.ndarray) -> float:
    """Mean KL(teacher || student) in nats of logits (n, classes)."""
    return float(kl_divergence(torch.from_numpy(student), torch.from_numpy(teacher)).mean())


@checked("(n,)")
def perplexity(losses: np.ndarray) -> float:
    """exp of the mean of negative log-likelihoods in nats, one a token (or one mean a window, where all windows count
    equally many tokens), shape (n,). Overflow is inf."""
    return float(torch.tensor(losses.mean()).exp())


METRICS: Final[Mapping[str, Metric]] = {
    metric.__name__: metric for metric in (accuracy, f1, matthews_correlation, pearson, spearmanr)
}  # of labels or scalars, by the names that tasks and results call them


def kl_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(softmax(teacher) || softmax(student)) in nats over the last dimension of two logit tensors of one shape."""
    return F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="none").sum(-1)


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    # Exact test for constants: the residuals of a constant around its rounded mean are noise, not zeros.
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    return float((x / np.linalg.norm(x)) @ (y / np.linalg.norm(y)))


def ranks(x: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]
