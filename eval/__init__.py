"""Evaluation: metrics, GLUE and perplexity. Knows models and data, no quantization method.

The public names are below; :mod:`zsaq.eval.glue` and :mod:`zsaq.eval.perplexity` are also scripts
(``python eval/glue.py --help``), and ``perplexity`` is imported from its module.
"""

if __name__ != "zsaq.eval":
    raise ImportError(f"this is zsaq.eval, imported as {__name__}: pip install -e . and import zsaq.eval")

from zsaq.eval.metrics import METRICS
from zsaq.eval.scoring import predict, score
from zsaq.eval.tasks import TASKS, Task, read_rows

__all__ = ["METRICS", "TASKS", "Task", "predict", "read_rows", "score"]
