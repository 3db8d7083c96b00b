"""Metrics as :class:`evaluate.Metric` subclasses: instantiated directly, computed in memory, no network.

All values are fractions (an accuracy of 88.2 % is 0.882), divergences are in nats. Whatever is undefined
for constant predictions (correlations, F1 without positives) is 0 and not nan: that is the value of a collapsed model.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, final

import evaluate
import numpy as np
import torch
from datasets import Features, Sequence, Value
from torch import Tensor
from torch.nn import functional as F

LABELS = Features({"predictions": Value("int64"), "references": Value("int64")})
SCALARS = Features({"predictions": Value("float64"), "references": Value("float64")})
LOGITS = Features({"predictions": Sequence(Value("float64")), "references": Sequence(Value("float64"))})


class _InMemory(evaluate.Metric, ABC):
    """What ours share: no cache file (processes never meet on disk), and an error for nothing to measure.

    Raises `ValueError` from `compute` for no samples and for values that are not finite.
    """

    inputs: ClassVar[Features]

    def __init__(self, **kwargs):
        super().__init__(keep_in_memory=True, **kwargs)

    @final
    def _info(self) -> evaluate.MetricInfo:
        # No format="numpy": that reads float64 columns as float32.
        text = str(type(self).__doc__)
        return evaluate.MetricInfo(description=text, citation="", inputs_description=text, features=self.inputs)

    @final
    def _compute(self, predictions, references=None, **kwargs) -> dict[str, float]:
        columns = [np.asarray(column) for column in (predictions, references) if column is not None]
        for column in columns:
            if not len(column):
                raise ValueError(f"{type(self).__name__} was given no samples: give at least one")
            if not np.isfinite(column).all():
                raise ValueError(f"{type(self).__name__} was given nan or infinite values: the model is broken")
        return self.measure(*columns, **kwargs)

    @abstractmethod
    def measure(self, *columns: np.ndarray) -> dict[str, float]:
        """The metric of predictions and, where there are any, references; arrays of shape (n,) or (n, classes)."""


@final
class Accuracy(_InMemory):
    """Share of equal labels: `predictions` and `references` are class indices, shape (n,)."""

    inputs = LABELS

    def measure(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        return {"accuracy": float((predictions == references).mean())}


@final
class Agreement(_InMemory):
    """Share of samples where the student (`predictions`) names the teacher's class (`references`), shape (n,)."""

    inputs = LABELS

    def measure(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        return {"agreement": float((predictions == references).mean())}


@final
class F1(_InMemory):
    """F1 of class 1 against the rest, 2 TP / (2 TP + FP + FN); 0 where there is no class 1 at all."""

    inputs = LABELS

    def measure(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        found = int(((predictions == 1) & (references == 1)).sum())
        marked = int((predictions == 1).sum() + (references == 1).sum())
        return {"f1": 2 * found / marked if marked else 0.0}


@final
class Matthews(_InMemory):
    """Matthews correlation for any number of classes (R_K of Gorodkin 2004); 0 for constant predictions."""

    inputs = LABELS

    def measure(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        _, joint = np.unique(np.concatenate([predictions, references]), return_inverse=True)
        one_hot = np.eye(joint.max() + 1)[joint]
        centred = [half - half.mean(0) for half in np.split(one_hot, 2)]
        covariance = (centred[0] * centred[1]).sum()
        spread = np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum())
        return {"matthews_correlation": float(covariance / spread) if spread > 0 else 0.0}


@final
class Pearson(_InMemory):
    """Pearson correlation of two series of scalars, shape (n,); 0 where one of them is constant."""

    inputs = SCALARS

    def measure(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        return {"pearson": _correlation(predictions, references)}


@final
class Spearman(_InMemory):
    """Spearman correlation: Pearson of the ranks, ties share their mean rank; 0 where one series is constant."""

    inputs = SCALARS

    def measure(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        return {"spearmanr": _correlation(_ranks(predictions), _ranks(references))}


@final
class KLDivergence(_InMemory):
    """Mean KL(teacher || student) in nats of logits (n, classes): `predictions` student, `references` teacher."""

    inputs = LOGITS

    def measure(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        return {"kl": float(kl_divergence(torch.from_numpy(predictions), torch.from_numpy(references)).mean())}


@final
class Perplexity(_InMemory):
    """exp of the mean: `predictions` are negative log-likelihoods in nats, one a token (or one mean a window, where
    all windows count equally many tokens), shape (n,). Overflow is inf."""

    inputs = Features({"predictions": Value("float64")})

    def measure(self, predictions: np.ndarray) -> dict[str, float]:
        return {"perplexity": float(torch.tensor(predictions.mean()).exp())}


def kl_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(softmax(teacher) || softmax(student)) in nats over the last dimension of two logit tensors of one shape."""
    return F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="none").sum(-1)


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    # Exact test for constants: the residuals of a constant around its rounded mean are noise, not zeros.
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    return float((x / np.linalg.norm(x)) @ (y / np.linalg.norm(y)))


def _ranks(x: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]
