import copy
import math

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from language_toys import bert, bpe, opt, text_generator, wordpiece
from zsaq.language.ascent import Ascent, distinct, entropy
from zsaq.language.bridge import BridgeKind, bridge_for
from zsaq.language.layout import Layout
from zsaq.language.text import Text
from zsaq.language.text_generator import TextGenerator
from zsaq.language.writing import load_generator, with_adapters
from zsaq.train.pair import Batch


def make_ascent(
    kind: BridgeKind = "auto",
    source=wordpiece,
    text_pair: bool = False,
    labels: int = 3,
    batch_size: int = 8,
    **options,
) -> tuple[Ascent, PreTrainedModel]:
    text, teacher = text_generator(kind, source, text_pair, labels, batch_size=batch_size)
    return Ascent(text, teacher, **{"top": 8, "lr": 1e-3, **options}), teacher


def against(teacher: PreTrainedModel, seed: int = 9):
    """Symmetric disagreement with a frozen student that was drawn elsewhere."""
    student = bert(wordpiece(), len(teacher.config.id2label or {}), seed)

    def divergence(batch: Batch) -> tuple[Tensor, Tensor]:
        logits = teacher(**batch).logits
        return (logits - student(**batch).logits).square().mean(), logits

    return divergence, student


@pytest.mark.parametrize("source", [wordpiece, bpe])
@pytest.mark.parametrize("kind", ["auto", "vocabulary", "representation"])
def test_every_bridge_climbs_and_leaves_teacher_and_student_alone(kind, source) -> None:
    ascent, teacher = make_ascent(kind, source)
    divergence, student = against(teacher)
    marked = next(iter(student.parameters()))
    marked.grad = torch.full_like(marked, 7.0)
    before = copy.deepcopy([m.state_dict() for m in (teacher, student, ascent.reference)])
    start = copy.deepcopy(ascent.text.generator.state_dict())
    metrics = ascent.ascend(divergence)
    names = {"disagreement", "fluency", "diversity", "generator_gradient", "distinct_1", "distinct_2"}
    assert set(metrics) == names and all(map(math.isfinite, metrics.values()))
    assert metrics["fluency"] == pytest.approx(0.0, abs=1e-6), "the first step starts at the reference"
    assert metrics["generator_gradient"] > 0
    for model, state in zip((teacher, student, ascent.reference), before, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for m in (teacher, ascent.text.generator) for p in m.parameters())
    assert (marked.grad == 7).all() and sum(p.grad is not None for p in student.parameters()) == 1
    assert any(not torch.equal(v, start[k]) for k, v in ascent.text.generator.state_dict().items())
    assert ascent.ascend(divergence)["fluency"] > 0 and ascent.text.replays


def ascended(ascent: Ascent, divergence, term: str) -> tuple[float, float]:
    """A term on the generator's first text, and its mean over the last 15 of 25 steps, each on newly written text."""
    values = []
    for _ in range(25):
        values.append(ascent.ascend(divergence)[term])
        ascent.text.renew()
    return values[0], sum(values[-15:]) / 15


@pytest.mark.parametrize("text_pair", [False, True])
def test_disagreement_rises_on_what_is_written_while_climbing(text_pair: bool) -> None:
    ascent, teacher = make_ascent(
        text_pair=text_pair, lr=6e-3, batch_size=64, top=200, ceiling=1e9, fluency=0.0, diversity=0.0
    )
    before, after = ascended(ascent, against(teacher)[0], "disagreement")
    assert after > 1.2 * before


def test_diversity_rises_on_what_is_written_while_climbing() -> None:
    ascent, teacher = make_ascent(fluency=0.0, diversity=1.0, lr=3e-3, batch_size=64, top=200)
    before, after = ascended(ascent, flat(teacher), "diversity")
    assert after > before + 0.05


def flat(teacher: PreTrainedModel):
    """No disagreement anywhere: what is left are the other terms."""

    def divergence(batch: Batch) -> tuple[Tensor, Tensor]:
        logits = teacher(**batch).logits
        return 0.0 * logits.sum(), logits

    return divergence


def test_fluency_alone_leads_back_to_the_reference() -> None:
    ascent, teacher = make_ascent(fluency=1.0, diversity=0.0, lr=2e-3, batch_size=24)
    with torch.no_grad():
        for p in ascent.text.generator.parameters():
            p.add_(0.02 * torch.randn_like(p))
    values = [ascent.ascend(flat(teacher))["fluency"] for _ in range(25)]
    assert sum(values[-5:]) < 0.6 * sum(values[:5])


def test_steps_that_are_not_finite_stop() -> None:
    ascent, teacher = make_ascent()
    state = copy.deepcopy(ascent.text.generator.state_dict())
    with pytest.raises(ValueError, match="not finite"):
        ascent.ascend(lambda batch: (teacher(**batch).logits.sum() * torch.nan, teacher(**batch).logits))
    assert all(torch.equal(v, state[k]) for k, v in ascent.text.generator.state_dict().items())


def test_adapters_climb_over_a_generator_that_stays(tmp_path) -> None:
    pytest.importorskip("peft")
    tokenizer = wordpiece()
    opt(tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    generator = with_adapters(load_generator(str(tmp_path))[0])
    teacher = bert(tokenizer)
    bridge = bridge_for(tokenizer, tokenizer, teacher)
    text = TextGenerator(generator, tokenizer, bridge, Layout.of(tokenizer, 32), batch_size=8, length=8)
    ascent = Ascent(text, teacher, reference=opt(tokenizer), lr=1e-2)
    state = copy.deepcopy(generator.state_dict())
    divergence, _ = against(teacher)
    fluency = [ascent.ascend(divergence)["fluency"] for _ in range(3)]
    assert fluency[0] == pytest.approx(0.0, abs=1e-6) and fluency[2] > 0
    assert ascent.reference is generator and all(
        p.requires_grad == ("lora" in n) for n, p in generator.named_parameters()
    )
    assert {"lora" in k for k, v in generator.state_dict().items() if not torch.equal(v, state[k])} == {True}


def test_entropy_and_distinct_by_hand() -> None:
    mask = torch.ones(2, 3)
    sure = torch.tensor([[50.0, 0.0], [0.0, 50.0]])
    assert entropy(sure, mask).item() == pytest.approx(math.log(2))
    assert entropy(sure[:1].repeat(4, 1), mask).item() == pytest.approx(0, abs=1e-6)
    numbers = torch.tensor([[0.0], [2.0]])
    assert entropy(numbers, mask).item() == pytest.approx(0.5 * math.log(2 * math.pi * math.e))
    words = torch.zeros(1, 3, 4)
    words[0, 0, 0] = words[0, 1, 1] = words[0, 2, 2] = 99
    assert entropy(words, torch.tensor([[1, 1, 0]])).item() == pytest.approx(math.log(2))
    text = Text.of([[5, 6, 5, 6], [5]])
    assert distinct(text, 1) == 2 / 5 and distinct(text, 2) == 2 / 3 and distinct(text, 5) == 0


def test_regression_teachers_climb_too() -> None:
    ascent, teacher = make_ascent(labels=1, text_pair=True)
    assert all(map(math.isfinite, ascent.ascend(against(teacher)[0]).values()))


def test_a_reference_at_hand_is_no_copy_and_climbs_alike() -> None:
    climbs = []
    for at_hand in (False, True):
        text, teacher = text_generator()
        start = opt(wordpiece()).requires_grad_(False)
        ascent = Ascent(text, teacher, reference=start if at_hand else None, top=8, lr=1e-3)
        assert (ascent.reference is start) == at_hand
        divergence, _ = against(teacher)
        climbs.append([ascent.ascend(divergence) for _ in range(3)])
    assert climbs[0] == climbs[1] and climbs[0][2]["fluency"] > 0


def test_only_what_climbs_needs_logits_that_are_its_output_layers() -> None:
    tokenizer = wordpiece()
    teacher, generator = bert(tokenizer), opt(tokenizer)
    generator.register_forward_hook(lambda module, args, out: out.__class__(**{**out, "logits": out.logits.tanh()}))
    text = TextGenerator(
        generator, tokenizer, bridge_for(tokenizer, tokenizer, teacher), Layout.of(tokenizer, 32), length=8
    )
    assert next(text)["input_ids"].shape[0] == 32
    with pytest.raises(ValueError, match="more than its output layer"):
        Ascent(text, teacher)
