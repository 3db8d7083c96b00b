"""Attention scores as something to match."""

from typing import final

import torch
from torch import Tensor
from transformers import PreTrainedModel

from zsaq.language.models import AttentionProjection, attention_projections, task_kind
from zsaq.train.objectives import Objective, relative_error
from zsaq.train.pair import Capture, Out, Pair


@final
class AttentionScores(Objective):
    """Sum over blocks of ||S_P - S_Q||^2 / ||S_P||^2 for scores S = q k^T / sqrt(d_head) before the softmax, mean
    over rows.

    S is [B, heads, L, L]; rows and columns of padding do not count, nor does the future of causal models. Divided by
    the teacher's own size as in `HiddenStates`; Zhang et al. 2020 (TernaryBERT, arXiv 2009.12812, eq. 8) take the
    plain mean. Raises ValueError for models that rotate their queries (see `attention_projections`).
    """

    def __init__(self, teacher: PreTrainedModel, student: PreTrainedModel) -> None:
        self.projections = attention_projections(teacher), attention_projections(student)
        self.causal = task_kind(teacher) == "causal"
        owned = [{m for p in side for m in (p.query, p.key)} for side in self.projections]
        self.captures = (
            Capture("teacher", lambda _, module: module in owned[0]),
            Capture("student", lambda _, module: module in owned[1]),
        )

    def __call__(self, pair: Pair) -> Tensor:
        p, q = (self.scores(out, i) for i, out in enumerate((pair.teacher, pair.student)))
        length = p[0].shape[-1]
        mask = pair.batch.get("attention_mask")
        keep = torch.ones(len(p[0]), length, dtype=torch.bool, device=p[0].device) if mask is None else mask.bool()
        keep = keep[:, None, :, None] & keep[:, None, None, :]
        if self.causal:
            keep = keep.tril()
        return torch.stack([relative_error(a, b, keep) for a, b in zip(p, q, strict=True)]).sum()

    def scores(self, out: Out, side: int) -> list[Tensor]:
        seen = dict(out.seen[self.captures[side]])
        found: list[AttentionProjection] = self.projections[side]
        return [p.scores(seen[p.query].float(), seen[p.key].float()) for p in found]
