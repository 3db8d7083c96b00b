"""Bare encoders: what they are matched by, and that every method that learns works on them."""

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import zsaq
from embedding_toys import KINDS, encoder, sentence_folder
from language_toys import FEW, REAL, W4, bert, bpe, opt, wordpiece
from zsaq import Loop, coverage
from zsaq.language.ascent import spectral_entropy
from zsaq.language.job import TextJob
from zsaq.language.methods import METHODS, suits
from zsaq.language.models import task_kind
from zsaq.language.sam_sga import divergence
from zsaq.method import Budget
from zsaq.pooling import Pooling
from zsaq.quant.model import quantize_model
from zsaq.train.embeddings import Embeddings, Similarities
from zsaq.train.pair import Pair

MASK = torch.tensor([[0, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])


def job_of(kind: str) -> TextJob:
    tokenizer = wordpiece(types=kind in ("bert", "xlm-roberta"))
    job = TextJob.of(encoder(kind), tokenizer, generator=(opt(bpe()), bpe()), real=lambda: REAL)
    job.batch_size, job.style, job.length = 4, {"refresh": 2}, (4, 10)
    job.given = [next(job.noise(0))]
    return job


def learned(name: str, job: TextJob, seed: int = 3) -> Any:
    method = METHODS[name]
    few = {key: value for key, value in FEW.items() if key in method.options()}
    return method.fit(job, W4, Budget.of(method, "light", few), seed, Loop())


@pytest.mark.parametrize("kind", KINDS)
def test_a_bare_encoder_embeds_and_suits_every_method(kind: str) -> None:
    model = encoder(kind)
    assert task_kind(model) == "embedding" and suits(model) == list(METHODS)
    assert task_kind(bert(wordpiece())) == "classification"


@pytest.mark.parametrize(
    ("name", "kind"),
    [*((name, "bert") for name in METHODS), *((name, kind) for name in ("gptq-qat", "zsaq") for kind in KINDS)],
)
def test_every_row_gives_a_student(name: str, kind: str) -> None:
    job = job_of(kind)
    student = learned(name, job)
    assert "weights 4-bit" in " ".join(coverage(student).values())
    with torch.no_grad():
        assert torch.isfinite(student(**next(job.noise(1))).last_hidden_state).all()


@pytest.mark.parametrize("bits", ["w2a8", "w3a8"])
def test_steps_bring_the_students_similarities_closer(bits: str) -> None:
    job = job_of("bert")
    batch, error = next(job.noise(7)), Similarities(Pooling())
    rounded = quantize_model(job.teacher, zsaq.QuantConfig.parse(bits))
    job.given = [next(job.noise(seed)) for seed in range(8)]
    budget = Budget.of(METHODS["distill"], "light", {"steps": 40, "lr": 0.02})
    student = METHODS["distill"].fit(job, zsaq.QuantConfig.parse(bits), budget, 0, Loop())
    after, before = (float(error(Pair(job.teacher, each, batch)).detach()) for each in (student, rounded))
    assert after < 0.6 * before


def test_the_objective_is_of_vectors_similarities_and_states() -> None:
    teacher, student = encoder(), quantize_model(encoder(), W4)
    batch = next(job_of("bert").noise(0))
    values = divergence(teacher, 1.0).weighted(Pair(teacher, student, batch, divergence(teacher, 1.0).captures))[1]
    assert set(values) == {"Embeddings", "Similarities", "HiddenStates"} and all(v > 0 for v in values.values())
    with torch.no_grad():
        mask = batch["attention_mask"][..., None].float()
        p, q = ((m(**batch).last_hidden_state * mask).sum(1) / mask.sum(1) for m in (teacher, student))
    error = ((p - q).square().sum(1) / p.square().sum(1)).mean()
    torch.testing.assert_close(values["Embeddings"], error)
    rows = []
    for i in range(len(p)):
        a, b = (torch.stack([F.cosine_similarity(v[i], v[j], dim=0) for j in range(len(v)) if j != i]) for v in (p, q))
        rows.append((a - b).square().sum() / (a - a.mean()).square().sum())
    torch.testing.assert_close(values["Similarities"], torch.stack(rows).mean())


def test_a_row_alone_has_no_similarities_and_equal_models_no_error() -> None:
    teacher = encoder()
    batch = next(job_of("bert").noise(0))
    alone = {name: value[:1] for name, value in batch.items()}
    student = quantize_model(teacher, W4)
    assert float(Similarities(Pooling())(Pair(teacher, student, alone)).detach()) == 0
    for objective in (Similarities(Pooling()), Embeddings(Pooling(normalized=True))):
        assert float(objective(Pair(teacher, teacher, batch)).detach()) == pytest.approx(0, abs=1e-9)


def test_logits_of_a_bare_encoder_are_refused() -> None:
    teacher = encoder()
    with pytest.raises(ValueError, match="BertModel answers no logits; give a model with a head"):
        zsaq.KL()(Pair(teacher, teacher, next(job_of("bert").noise(0))))


def test_the_entropy_of_a_batchs_spectrum() -> None:
    assert float(spectral_entropy(torch.eye(8))) == pytest.approx(math.log(8), rel=1e-5)
    assert float(spectral_entropy(torch.ones(8, 3))) == pytest.approx(0, abs=1e-4)
    vectors = torch.randn(6, 4, requires_grad=True)
    spectral_entropy(vectors).backward()
    assert vectors.grad is not None and vectors.grad.isfinite().all()


@pytest.mark.parametrize(
    ("mode", "rows"),
    [
        ("cls", lambda x: [x[0, 1], x[1, 0], x[2, 0]]),
        ("lasttoken", lambda x: [x[0, 3], x[1, 4], x[2, 0]]),
        ("max", lambda x: [x[0, 1:4].amax(0), x[1].amax(0), x[2, 0]]),
        ("mean", lambda x: [x[0, 1:4].mean(0), x[1].mean(0), x[2, 0]]),
        ("mean_sqrt_len_tokens", lambda x: [x[0, 1:4].sum(0) / 3**0.5, x[1].sum(0) / 5**0.5, x[2, 0]]),
        ("weightedmean", lambda x: [
            (x[0, 1] + 2 * x[0, 2] + 3 * x[0, 3]) / 6, (x[1] * torch.arange(1, 6)[:, None]).sum(0) / 15, x[2, 0],
        ]),
    ],
)  # fmt: skip
def test_each_mode_by_hand(mode: Any, rows: Any) -> None:
    states = torch.randn(3, 5, 4)
    torch.testing.assert_close(Pooling((mode,))(states, MASK), torch.stack(rows(states)))
    both = Pooling((mode, "cls"), normalized=True)(states, MASK)
    assert both.shape == (3, 8)
    torch.testing.assert_close(both.norm(dim=1), torch.ones(3))


def test_without_a_mask_all_positions_count() -> None:
    states = torch.randn(2, 3, 4)
    torch.testing.assert_close(Pooling()(states), states.mean(1))


def test_the_pooling_of_the_teachers_folder_is_what_is_matched(tmp_path, capsys) -> None:
    cls = {"embedding_dimension": 32, "pooling_mode": "cls"}
    folder = sentence_folder(tmp_path / "teacher", pooling=cls)
    generator = (opt(bpe()), bpe())
    zsaq.quantize(folder, "w4a8", method="llm-qat", generator=generator, steps=1)
    assert "embeddings are cls, at unit length over tokens" in " ".join(capsys.readouterr().err.split())
    objective: Any = divergence(zsaq.io.teacher.load_teacher(folder), 0.0).parts[0][1]  # type: ignore[attr-defined]
    assert objective.pooling == Pooling(("cls",), normalized=True)
    model = encoder()
    zsaq.quantize(model, "w4a8", tokenizer=wordpiece(), method="llm-qat", generator=generator, steps=1)
    assert "embeddings are taken for mean over tokens: no files" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("scale", [0.1, 1.0, 20.0])
def test_a_rerankers_scale_does_not_matter(scale: float) -> None:
    """The same reranker with logits in other units: the error of its answers weighs the same beside hidden states."""
    tokenizer = wordpiece()
    job = TextJob.of(bert(tokenizer, labels=1), tokenizer, generator=(opt(bpe()), bpe()), text_pair=True)
    plain = quantize_model(job.teacher, W4)
    batch = next(job.noise(0))
    objective = divergence(job.teacher, 0.0)
    assert [type(part).__name__ for _, part in objective.parts] == ["RelativeMSE"]
    wanted = float(objective(Pair(job.teacher, plain, batch)).detach())
    p, q = (model(**batch).logits.detach() for model in (job.teacher, plain))
    assert wanted == pytest.approx(float((p - q).square().mean() / p.var(unbiased=False)), rel=1e-4)
    with torch.no_grad():
        for name, parameter in job.teacher.named_parameters():
            if name.startswith("classifier."):
                parameter.mul_(scale)
    again = float(objective(Pair(job.teacher, quantize_model(job.teacher, W4), batch)).detach())
    assert again == pytest.approx(wanted, rel=0.02)


def test_one_row_of_a_reranker_has_an_error_too() -> None:
    tokenizer = wordpiece()
    teacher = bert(tokenizer, labels=1)
    batch = {"input_ids": torch.tensor([[3, 40, 50, 4]])}
    pair = Pair(teacher, quantize_model(teacher, W4), batch)
    assert 0 < float(zsaq.RelativeMSE()(pair).detach()) < math.inf


@pytest.mark.parametrize("name", ["llm-qat", "gptq-qat", "zsaq"])
def test_rerankers_learn_from_pairs(name: str) -> None:
    tokenizer = wordpiece()
    job = TextJob.of(bert(tokenizer, labels=1), tokenizer, generator=(opt(bpe()), bpe()), text_pair=True)
    job.batch_size, job.style, job.length = 4, {"refresh": 2}, (4, 10)
    student = learned(name, job)
    with torch.no_grad():
        assert student(**next(job.noise(1))).logits.shape == (4, 1)
