import dataclasses
import json
from collections.abc import Iterator

import pytest
import torch
from transformers import BitsAndBytesConfig

from toys import batches, bert, gpt2
from zsaq import KL, Batch, Grid, HiddenStates, Loop, QuantConfig, load, repeat
from zsaq.language.sam_sga import divergence as objective
from zsaq.language.sam_sga import gptq_student, grid_step, pull, sam_sga, student_of, student_optimizer, warm_start
from zsaq.quant.layers import QuantLinear, quant_layers
from zsaq.quant.ranges import MinMax
from zsaq.train.optim import Clip
from zsaq.train.sam import SAM
from zsaq.train.trainer import Divergence

W2 = QuantConfig.parse("w2a8")


def text() -> Iterator[Batch]:
    return repeat(batches(8))


class Climber:
    """Stands in for the generator's ascent, and counts its climbs."""

    climbs = 0

    def ascend(self, divergence: Divergence) -> dict[str, float]:
        embeds = torch.randn(4, 6, 32, requires_grad=True)
        value, logits = divergence({"inputs_embeds": embeds, "attention_mask": torch.ones(4, 6, dtype=torch.int64)})
        (gradient,) = torch.autograd.grad(value, embeds)
        assert torch.isfinite(gradient).all() and gradient.abs().sum() > 0 and logits.shape[0] == 4
        self.climbs += 1
        return {"disagreement": value.item()}


def gap(teacher, student) -> float:
    held = batches(1, size=32, seed=7)[0]
    with torch.no_grad():
        answers = [model(**held).logits.log_softmax(-1) for model in (teacher, student)]
    return float((answers[0] - answers[1]).square().mean())


@pytest.mark.parametrize("make", [bert, gpt2])
def test_the_two_stages_bring_the_student_closer(make, tmp_path) -> None:
    teacher, ascent = make(), Climber()
    start = gap(teacher, student_of(teacher, W2))
    student = sam_sga(teacher, W2, text(), ascent, steps=24, warm=8, lr=0.02, loop=Loop(folder=tmp_path))
    assert gap(teacher, student) < 0.8 * start
    assert ascent.climbs == 3
    steps = [json.loads(line) for line in (tmp_path / "distill.jsonl").read_text().splitlines()]
    assert len(steps) == 16 and {"KL", "HiddenStates", "gap", "cosine", "disagreement"} <= set().union(*steps)
    assert len((tmp_path / "warm-start.jsonl").read_text().splitlines()) == 8


def test_the_warm_start_moves_blocks_only() -> None:
    teacher = bert()
    student = student_of(teacher, W2)
    before = {n: p.detach().clone() for n, p in student.named_parameters()}
    warm_start(student, teacher, repeat(batches(2)), 3)
    moved = {n for n, p in student.named_parameters() if not torch.equal(p, before[n])}
    assert moved and all(n.startswith("bert.encoder.layer.") for n in moved)
    trained = {n for n, p in student.named_parameters() if p.requires_grad}
    assert "classifier.weight" in trained and "bert.embeddings.word_embeddings.weight" not in trained


def test_a_part_that_is_switched_off_is_not_there() -> None:
    teacher, ascent = bert(), Climber()
    sam_sga(teacher, W2, text(), ascent, steps=6, warm=0, ratio=(2, 0))
    assert ascent.climbs == 0
    student = student_of(teacher, W2)
    assert isinstance(student_optimizer(student, 0.01), Clip) and isinstance(student_optimizer(student, 0.01, 0.1), SAM)
    assert [type(part) for _, part in objective(teacher, 0.0).parts] == [KL]
    assert [type(part) for _, part in objective(teacher, 0.5).parts] == [KL, HiddenStates]


def test_the_same_seed_gives_the_same_student() -> None:
    teacher = bert()
    ends = []
    for _ in range(2):
        student = pull(student_of(teacher, W2), teacher, repeat(batches(3)), steps=4, lr=1e-3, rho=0.05)
        ends.append([p.detach() for p in student.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_a_teacher_in_few_bits_answers_for_a_student_of_the_float_model(tmp_path) -> None:
    pytest.importorskip("bitsandbytes")
    start = bert()
    start.save_pretrained(tmp_path)
    few = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    teacher = type(start).from_pretrained(tmp_path, quantization_config=few)
    with pytest.raises(ValueError, match="quantized already by another library"):
        sam_sga(teacher, W2, text(), steps=2, warm=0)
    student = sam_sga(teacher, W2, text(), ascent=Climber(), steps=24, warm=8, lr=0.02, start=start)
    assert gap(teacher, student) < gap(teacher, student_of(start, W2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("make", [bert, gpt2])
def test_a_teacher_in_half_precision_has_a_student_in_full(make, dtype: torch.dtype, tmp_path) -> None:
    teacher = make().to(dtype)
    static = QuantConfig(Grid(2, levels="half"), Grid(8, symmetric=False, per="tensor"))
    student = sam_sga(teacher, static, text(), steps=8, warm=2)
    assert {p.dtype for p in student.parameters()} == {torch.float32}
    assert {p.dtype for p in teacher.parameters()} == {dtype}
    student.save_pretrained(tmp_path)
    held = batches(1, size=4, seed=7)[0]
    assert torch.equal(load(tmp_path)(**held).logits, student(**held).logits)


def test_static_ranges_and_gptq_share_few_batches() -> None:
    static = QuantConfig(Grid(4), Grid(8, symmetric=False, per="tensor"))
    student = gptq_student(bert(), static, iter(batches(2)))
    assert torch.isfinite(student(**batches(1, seed=7)[0]).logits).all()


def test_ranges_are_learned_where_they_were_searched_and_nowhere_else() -> None:
    rule = QuantConfig(Grid(2, levels="half"))
    rules = {"*layer.0*": rule, "*layer.1.attention*": dataclasses.replace(rule, ranges="minmax")}
    student = student_of(bert(), QuantConfig(Grid(8), rules=tuple(rules.items())))
    kinds = {name: layer.weight_quantizer.ranges for name, layer in quant_layers(student)}
    learned = {name for name, ranges in kinds.items() if any(True for _ in ranges.parameters())}
    assert learned == {name for name in kinds if "layer.0" in name} and learned
    assert all(isinstance(kinds[name], MinMax) for name in kinds if "layer.1.attention" in name)


def test_a_warm_start_that_leaves_no_step_is_named() -> None:
    with pytest.raises(ValueError, match="warm is 4 of 4"):
        sam_sga(bert(), W2, text(), steps=4, warm=4)


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_that_cannot_be_is_named_before_a_step(share: float) -> None:
    with pytest.raises(ValueError, match=rf"sam_share is {share}; give a share of the steps, from 0 to 1"):
        sam_sga(bert(), W2, (), steps=4, warm=2, sam_share=share)


def test_sam_takes_the_last_share_of_the_steps(tmp_path) -> None:
    sam_sga(bert(), W2, text(), steps=12, warm=2, sam_share=0.3, loop=Loop(folder=tmp_path))
    steps = [json.loads(line) for line in (tmp_path / "distill.jsonl").read_text().splitlines()]
    assert ["gap" in step for step in steps] == [False] * 7 + [True] * 3


@pytest.mark.parametrize("bits", ["w2a8", "w4a8", "w8a8"])
def test_rates_count_in_grid_steps(bits: str) -> None:
    student = student_of(bert(), QuantConfig.parse(bits))
    layer = next(m for _, m in quant_layers(student) if isinstance(m, QuantLinear))
    levels = layer.dequantized()[0].unique()
    gaps = levels.diff()
    assert gaps.min() <= 2 * grid_step(student) and grid_step(student) <= 4 * gaps.min()
    sam = student_optimizer(student, 0.01, 0.5)
    assert isinstance(sam, SAM) and sam.rho == pytest.approx(0.5 * grid_step(student))
    assert sam.param_groups[0]["lr"] == pytest.approx(0.01 * grid_step(student))
