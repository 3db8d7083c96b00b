"""The one table of methods for language: where inputs come from x how the student is fitted x defaults.

A method is a row; `Method.fit(job, config, budget, seed, loop)` answers its student (see `zsaq.method.Method`,
`zsaq.language.job.TextJob`). `steps` are the student's optimizer steps, `warm` those of them that are taken layer by
layer (None: a fifth), `calibration` the batches that GPTQ rounds on. Rates and radii count in grid steps
(`zsaq.language.sam_sga.student_optimizer`). The light budgets are those of the tables in README.md and
recipes/LOG.md; the best ones read no less than their papers did (LLM-QAT 100,000 texts, GPTQ 262,144 tokens; ZSAQ does
not say).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from transformers import PreTrainedModel

from zsaq.language.fits import (
    Fit,
    distilled,
    gptq_qat,
    gptq_rounded,
    layer_wise,
    minimax,
    reconstructed,
    rounded,
    rounded_minmax,
    with_rules,
)
from zsaq.language.job import TextJob
from zsaq.language.models import TaskKind, known_task_kind
from zsaq.language.size import Size
from zsaq.method import Budget, Effort, Method
from zsaq.quant.config import QuantConfig
from zsaq.train.loop import Loop

STEPS: Final = {"steps": (200, 2_000, 20_000)}
BATCHES: Final = {"calibration": (50, 128, 384)}
FEW_BATCHES: Final = {"calibration": (16, 128, 384)}  # before steps are taken
BLOCKS: Final = {"calibration": (10, 20, 128), "steps": (40, 200, 2_000), "batch_size": (4, 8, 16)}  # of every block
PLAIN: Final = {"lr": 0.0032, "hidden": 1.0}
SLOW: Final = {"lr": 0.001, "hidden": 1.0}  # from GPTQ's rounding on: a rate that does not undo it
LEARNS: Final = {"lr": 0.005}  # of .002, .005, .02: by KL on own text of another seed (SmolLM2, 8 blocks, W3)
WARM: Final = {"warm": None}
RHO: Final = {"rho": 0.16}
LATE: Final = {"rho": 0.0, "sam_share": 0.15}  # rho .16 costs some KL; the share is of the steps, the last ones
SGA: Final = {
    "ratio": (5, 1), "generator_lr": 1e-4, "fluency": 1.0, "diversity": 1.0, "bridge": "auto", "eight_bit": False,
    "lora": False,
}  # fmt: skip

NOTHING, NOISE, TEXT = "none", "random tokens", "text of a generator"
OWN, REAL = "batches that the user gave", "real unlabelled text"  # nobody knows that the former are not real
READS = "a classifier, a causal language model or a bare encoder, and its fast tokenizer"
GPTQ = "Frantar et al. 2022 (GPTQ), arXiv 2210.17323"
LEARNED = "Chen et al. 2024 (EfficientQAT), arXiv 2407.11062"
QAT = "Liu et al. 2023 (LLM-QAT), arXiv 2305.17888"
LKD = "Yao et al. 2022 (ZeroQuant), arXiv 2206.01861"
ZSAQ = "Zhu et al. 2023, arXiv 2310.13315"
ANY = "any model of transformers"
STEP = "a step: the teacher's answer, the student's and its gradient"
PASSES = "about five passes of the student over the batches"


def row(
    name: str, idea: str, fit: Fit, inputs: str, paper: str = "", *, cost: str, needs: str = READS,
    budgets: Mapping[str, tuple[int, int, int]] | None = None, settings: Mapping[str, Any] | None = None,
) -> Method:  # fmt: skip
    def placed(job: TextJob, config: QuantConfig, budget: Budget, seed: int, loop: Loop) -> PreTrainedModel:
        """`fit` with the models on the loop's device from the first text on."""
        job.start.to(loop.accelerator.device)  # type: ignore[arg-type]
        job.shared = loop.shared
        return fit(job, config, budget, seed, loop)

    kinds = {name: int for name, default in (settings or {}).items() if default is None}
    return Method(
        name, idea, placed, inputs, paper, needs, cost, budgets or {}, settings or {}, inputs not in (OWN, REAL),
        kinds=kinds,
    )  # fmt: skip


ROWS: Final = (
    row("rtn-minmax", "round-to-nearest, min-max ranges; static inputs by random tokens", rounded_minmax, NOTHING,
        cost="seconds", needs=ANY),
    row("rtn", "round-to-nearest, ranges of the least squared error; static inputs by random tokens", rounded,
        NOTHING, cost="seconds", needs=ANY),
    row("random-qat", "distillation on random tokens", distilled(TextJob.noise), NOISE,
        cost=STEP, budgets=STEPS, settings=PLAIN),
    row("gptq-random", "GPTQ's rounding on random tokens", gptq_rounded(TextJob.noise), NOISE, GPTQ,
        cost=PASSES, budgets=BATCHES),
    row("gptq", "GPTQ's rounding on sampled text", gptq_rounded(TextJob.text), TEXT, GPTQ,
        cost=f"{PASSES}, and writing", budgets=BATCHES),
    row("gptq-qat", "GPTQ's rounding, then plain steps, on sampled text", gptq_qat(TextJob.text), TEXT,
        f"{GPTQ}; {QAT}", cost="gptq's and llm-qat's", budgets=FEW_BATCHES | STEPS, settings=SLOW),
    row("reconstruct", "block by block GPTQ's rounding, then learned rounding, on sampled text",
        reconstructed(TextJob.text), TEXT, f"{GPTQ}; {LEARNED}", cost="gptq's, and steps of every block",
        budgets=BLOCKS, settings=LEARNS),
    row("lkd-random", "layer-wise distillation on random tokens", layer_wise(TextJob.noise), NOISE, LKD,
        cost="as random-qat", budgets=STEPS, settings={"lr": PLAIN["lr"]}),
    row("lkd", "layer-wise distillation on sampled text", layer_wise(TextJob.text), TEXT, LKD,
        cost="as llm-qat", budgets=STEPS, settings={"lr": PLAIN["lr"]}),
    row("llm-qat", "distillation on sampled text; a causal teacher writes its own", distilled(TextJob.text), TEXT, QAT,
        cost=f"{STEP}, and writing", budgets=STEPS, settings=PLAIN),
    row("zsaq", "plain steps on a generator's text; with a rho, the last of them by SAM", minimax, TEXT, ZSAQ,
        cost="as llm-qat; with a rho 1.1 times that", budgets=STEPS, settings={"warm": 0} | PLAIN | LATE),
    row("zsaq-paper", "a generator climbs where student and teacher disagree, the student descends by SAM", minimax,
        TEXT, ZSAQ, cost="twice llm-qat's, and a generator's step for every five", budgets=STEPS,
        settings=WARM | PLAIN | RHO | SGA),
    row("zsaq-no-sam", "zsaq-paper with plain steps", minimax, TEXT, ZSAQ,
        cost="as llm-qat, and a generator's step for every five", budgets=STEPS, settings=WARM | PLAIN | SGA),
    row("zsaq-no-sga", "zsaq-paper with a generator that never climbs", minimax, TEXT, ZSAQ,
        cost="twice llm-qat's", budgets=STEPS, settings=WARM | PLAIN | RHO),
    row("zsaq-plain", "zsaq-paper without SAM and SGA: layer-wise, then plain steps", minimax, TEXT, ZSAQ,
        cost="as llm-qat", budgets=STEPS, settings=WARM | PLAIN),
    row("distill", "distillation on batches of your own", distilled(TextJob.given_batches), OWN,
        cost=STEP, needs="a classifier, a causal language model or a bare encoder, and batches",
        budgets=STEPS, settings=PLAIN),
    row("gptq-real", "gptq's upper bound", gptq_rounded(TextJob.real_text), REAL, GPTQ, cost="as gptq",
        budgets=BATCHES),
    row("gptq-qat-real", "gptq-qat's upper bound", gptq_qat(TextJob.real_text), REAL, f"{GPTQ}; {QAT}",
        cost="as gptq-qat", budgets=FEW_BATCHES | STEPS, settings=SLOW),
    row("distill-real", "the upper bound: layer-wise, then plain steps, on real text",
        distilled(TextJob.real_text, warm=True), REAL, cost="as llm-qat", budgets=STEPS, settings=WARM | PLAIN),
)  # fmt: skip
METHODS: Final = {method.name: method for method in ROWS}


def suits(teacher: PreTrainedModel) -> list[str]:
    """The names of the methods that work on this teacher: all for a classifier, a regressor, a causal language model
    or a bare encoder; rounding for every other head."""
    return [
        name for name, method in METHODS.items() if method.inputs == NOTHING or known_task_kind(teacher) is not None
    ]


def find(name: str, teacher: PreTrainedModel, asked: QuantConfig | Size | None = None) -> Method:
    """The row of that name, as it is for what was `asked`: where inputs have static ranges, rounding reads random
    tokens. Raises ValueError for a name that is not in the table and for a method that does not suit
    this teacher, listing what does."""
    fitting = ", ".join(suits(teacher))
    if name not in METHODS:
        raise ValueError(f"method is {name!r}; for {type(teacher).__name__} give one of {fitting}")
    if name not in suits(teacher):
        raise ValueError(
            f"{name} learns from the answers of a sequence classifier, a causal language model or a bare encoder, and "
            f"{type(teacher).__name__} is none; for it give one of {fitting}"
        )
    static = asked is not None and asked.static and METHODS[name].inputs == NOTHING
    return replace(METHODS[name], inputs=NOISE) if static else METHODS[name]


def auto(kind: TaskKind | None, config: QuantConfig, effort: Effort = "default") -> str:
    """The method that measured best for such a model and such bits, the fewest of any weights in `config`.

    - Weights of causal language models alone: at effort "light" `rtn`, which takes seconds; at "default" `gptq`, which
      takes minutes for 135 million parameters on two cores; at "best" what trains, by the rules below.
    - Heads that are neither classifier nor causal (`kind` None): `rtn`; all else learns from the teacher's answers.
    - Weights of 8 bits or in floats: `rtn`. At W8A8 nothing was left to win: perplexity 93.37 of the teacher's 93.38
      (OPT), 112.48 of 112.52 (GPT-2), 4.120 of 4.116 (a small Llama).
    - 3 to 7 bits: `gptq-qat`. MiniLM on SST-2 at W4A8 88.58 % and KL .011 to the teacher (`zsaq-paper` 87.60, .022;
      `rtn` 88.08, .030); OPT at W3A8 94.14 of the teacher's 93.38 (`llm-qat` 94.68, `rtn` 95.62). Not on a Llama of
      260,000 parameters (W4A8 4.41, `llm-qat` 4.33, teacher 4.12).
    - The same with inputs in floats: `gptq`, what its paper did. GPT-2 at W3A8 113.41 without a step (`llm-qat`
      113.94).
    - 2 bits: `llm-qat`. GPT-2 115.91 (`gptq` 116.73, `zsaq-paper` 115.85 in twice the time), OPT 97.41 (97.97, 97.45),
      MiniLM 86.23 % and KL .088 (84.66, .160 without a step; `zsaq-paper` 86.43, .101).
    - Static ranges of inputs are read off what a method reads, and rounding reads random tokens, so `gptq`, which reads
      text, at 8 bits too. GPTQ's rounding cannot keep min-max ranges, so `llm-qat`.

    All at W?A8 and in budgets of minutes (README.md, recipes/LOG.md); 5 to 7 bits, weights alone and bare
    encoders were not measured and follow their neighbours.
    """
    weights = [(part.weight.bits, part.ranges) for part in with_rules(config) if part.weight is not None]
    fewest = min((bits for bits, _ in weights), default=16)
    fixed = config.static
    if kind == "causal" and fewest < 8 and effort != "best" and not fixed and weights_alone(config):
        if effort == "light":
            return "rtn"
        if not any(ranges == "minmax" for _, ranges in weights):
            return "gptq"
    if kind is None or (fewest >= 8 and not fixed):
        return "rtn"
    if fewest == 2 or any(ranges == "minmax" for _, ranges in weights):
        return "llm-qat"
    trains = kind == "causal" and effort == "best"
    return "gptq" if fewest >= 8 or (weights_alone(config) and not trains) else "gptq-qat"


def weights_alone(config: QuantConfig) -> bool:
    """Whether inputs stay in floats everywhere."""
    return all(part.input is None for part in with_rules(config))
