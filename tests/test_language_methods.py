import copy
from typing import Any

import pytest
import torch
from transformers import BertForMaskedLM, PreTrainedModel

import zsaq.language.ascent as ascent_module
import zsaq.language.job as job_module
from language_toys import W4, bert, bpe, fit, job_of, opt, wordpiece
from zsaq import Grid, Loop, QuantConfig, coverage
from zsaq.language.methods import METHODS, auto, find, suits
from zsaq.method import Budget

TOKEN, STATIC = Grid(8, per="token"), Grid(8, symmetric=False, per="tensor")
CLIMBING = {"zsaq-paper", "zsaq-no-sam"}


@pytest.mark.parametrize("kind", ["bert", "opt"])
@pytest.mark.parametrize("name", list(METHODS))
def test_every_row_gives_a_student_and_leaves_the_teacher_alone(name: str, kind: str) -> None:
    job = job_of(kind)
    before = copy.deepcopy(job.teacher.state_dict())
    student = fit(name, job)
    assert "weights 4-bit" in " ".join(coverage(student).values())
    with torch.no_grad():
        assert torch.isfinite(student(**next(job.noise(1))).logits).all()
    assert all(torch.equal(value, before[key]) for key, value in job.teacher.state_dict().items())


@pytest.mark.parametrize("name", ["gptq", "zsaq", "zsaq-paper"])
def test_the_same_seed_gives_the_same_student_and_another_another(name: str) -> None:
    ends = [[p.detach() for p in fit(name, job_of("bert"), seed=seed).parameters()] for seed in (3, 3, 4)]
    assert all(torch.equal(a, b) for a, b in zip(ends[0], ends[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(ends[0], ends[2], strict=True))


@pytest.mark.parametrize("name", list(METHODS))
def test_static_input_ranges_come_from_the_methods_own_batches(name: str) -> None:
    job = job_of("bert")
    assert torch.isfinite(fit(name, job, QuantConfig(Grid(4), STATIC))(**next(job.noise(1))).logits).all()


def test_zsaq_takes_plain_steps_and_with_a_rho_sam_s_at_the_end() -> None:
    ends = [
        fit("llm-qat", job_of("bert"), steps=3),
        *(fit("zsaq", job_of("bert"), steps=3, warm=0, rho=rho, sam_share=0.5) for rho in (0.0, 9.0)),
    ]
    plain, same, late = ([p.detach() for p in end.parameters()] for end in ends)
    assert all(torch.equal(p, q) for p, q in zip(plain, same, strict=True))
    assert not all(torch.equal(p, q) for p, q in zip(plain, late, strict=True))


def floats_held(monkeypatch, name: str, kind: str, **given: Any) -> tuple[int, int]:
    """How often a method copies a model (the student's own copy left out), and how many optimizers climb."""
    copies, optimizers, real = [], [], copy.deepcopy

    def counted(value: Any, memo: Any = None) -> Any:
        if isinstance(value, PreTrainedModel):
            copies.append(value)
        return real(value, memo)

    make = ascent_module.ascent_optimizer
    monkeypatch.setattr(job_module.copy, "deepcopy", counted)
    monkeypatch.setattr(ascent_module, "ascent_optimizer", lambda *args: optimizers.append(args) or make(*args))
    fit(name, job_of(kind), **given)
    return len(copies) - 1, len(optimizers)


@pytest.mark.parametrize("kind", ["bert", "opt"])
@pytest.mark.parametrize("name", [n for n in METHODS if n not in CLIMBING])
def test_what_never_climbs_copies_no_model_and_makes_no_optimizer(monkeypatch, name: str, kind: str) -> None:
    assert floats_held(monkeypatch, name, kind) == (0, 0)


@pytest.mark.parametrize("kind", ["bert", "opt"])
def test_a_ratio_without_climbs_is_none(monkeypatch, kind: str) -> None:
    assert floats_held(monkeypatch, "zsaq-paper", kind, ratio=(5, 0)) == (0, 0)


@pytest.mark.parametrize("kind", ["bert", "opt"])
def test_what_climbs_is_the_one_copy(monkeypatch, kind: str) -> None:
    """Of the generator, which is its own reference at the start, be it the teacher itself."""
    assert floats_held(monkeypatch, "zsaq-paper", kind) == (1, 1)


def test_only_what_may_read_real_data_is_not_zero_shot() -> None:
    reads = {name for name, method in METHODS.items() if not method.zero_shot}
    assert reads == {"distill", "gptq-real", "gptq-qat-real", "distill-real"}

    def refused() -> list[str]:
        raise AssertionError("a method without data read real text")

    job = job_of("bert")
    job.real = refused
    for name in set(METHODS) - reads:
        fit(name, job)


def test_every_row_is_whole() -> None:
    for name, method in METHODS.items():
        assert method.name == name and method.idea and method.inputs and method.needs and method.cost
        assert set(method.budgets) <= {"steps", "calibration", "batch_size"} and not set(method.budgets) & set(
            method.settings
        )
        assert all(list(counts) == sorted(counts) for counts in method.budgets.values())


def test_options_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match=r"gptq has no option steps; its options are calibration=50"):
        Budget.of(METHODS["gptq"], "light", {"steps": 3})
    with pytest.raises(ValueError, match="zsaq-no-sga has no option ratio"):
        Budget.of(METHODS["zsaq-no-sga"], "light", {"ratio": (5, 1)})
    with pytest.raises(ValueError, match="warm is 4 of 4"):
        fit("zsaq", job_of("bert"), steps=4, warm=4)


@pytest.mark.parametrize("name", ["zsaq-paper", "zsaq-plain", "distill-real"])
def test_a_fifth_of_the_steps_is_taken_layer_by_layer(name: str, tmp_path) -> None:
    method = METHODS[name]
    budget = Budget.of(method, "default", {"steps": 10})
    method.fit(job_of("bert"), W4, budget, 0, Loop(folder=tmp_path))
    lines = [len((tmp_path / f"{stage}.jsonl").read_text().splitlines()) for stage in ("warm-start", "distill")]
    assert lines == [2, 8] and method.options("light")["steps"] == 200


def test_methods_suit_teachers() -> None:
    teacher = bert(wordpiece())
    other = BertForMaskedLM(teacher.config)
    assert suits(teacher) == suits(opt(bpe())) == list(METHODS)
    assert suits(other) == ["rtn-minmax", "rtn"]
    assert find("zsaq", teacher) is METHODS["zsaq"]
    with pytest.raises(ValueError, match=r"BertForMaskedLM is none; for it give one of rtn-minmax, rtn$"):
        find("zsaq", other)
    with pytest.raises(ValueError, match="method is 'zsaqq'; for BertForSequenceClassification give one of rtn-minmax"):
        find("zsaqq", teacher)
    teacher.config.problem_type = "multi_label_classification"
    assert suits(teacher) == ["rtn-minmax", "rtn"]


@pytest.mark.parametrize(
    ("bits", "name"),
    [
        ("w8a8", "rtn"), ("w16a8", "rtn"), ("w8a16", "rtn"), ("w7a8", "gptq-qat"), ("w4a8", "gptq-qat"),
        ("w3a8", "gptq-qat"), ("w4a16", "gptq"), ("w4a16g8", "gptq"), ("w4a8b8", "gptq-qat"), ("w2a8", "llm-qat"),
        ("w2a16", "llm-qat"), ("w2a8-ternary", "llm-qat"),
    ],
)  # fmt: skip
def test_the_automatic_choice(bits: str, name: str) -> None:
    config = QuantConfig.parse(bits)
    assert auto("classification", config) == auto("causal", config, "best" if bits == "w2a16" else "default") == name
    assert auto("regression", config) == name
    assert auto(None, config) == "rtn"


@pytest.mark.parametrize(
    ("bits", "light", "default", "best"),
    [
        ("w4a16g8", "rtn", "gptq", "gptq-qat"),
        ("w3a16", "rtn", "gptq", "gptq-qat"),
        ("w2a16", "rtn", "gptq", "llm-qat"),
        ("w8a16", "rtn", "rtn", "rtn"),
        ("w4a8", "gptq-qat", "gptq-qat", "gptq-qat"),
        ("w2a8", "llm-qat", "llm-qat", "llm-qat"),
    ],
)  # fmt: skip
def test_weights_alone_take_seconds_minutes_or_training(bits: str, light: str, default: str, best: str) -> None:
    config = QuantConfig.parse(bits)
    assert [auto("causal", config, effort) for effort in ("light", "default", "best")] == [light, default, best]
    assert len({auto("classification", config, effort) for effort in ("light", "default", "best")}) == 1
    static = QuantConfig(Grid(4), STATIC)
    assert auto("causal", static, "light") != "rtn"


def test_the_automatic_choice_reads_rules_and_ranges() -> None:
    low = QuantConfig(Grid(2))
    assert auto("classification", QuantConfig(Grid(8), rules=(("*layer.0*", low),))) == "llm-qat"
    assert auto("causal", QuantConfig(Grid(8), rules=(("*layer.0*", low),))) == "gptq"
    assert auto("causal", QuantConfig(Grid(4), rules=(("*layer.0*", QuantConfig(Grid(4), TOKEN)),))) == "gptq-qat"
    assert auto("causal", QuantConfig(Grid(4), rules=(("*head*", None),))) == "gptq"
    assert auto("causal", QuantConfig(Grid(4), TOKEN, ranges="minmax")) == "llm-qat"
    assert auto("causal", QuantConfig(Grid(8), TOKEN, ranges="minmax")) == "rtn"
    assert auto("causal", QuantConfig(Grid(8), STATIC)) == "gptq"
    assert auto("causal", QuantConfig(Grid(8), STATIC, ranges="minmax")) == "llm-qat"


CONFIGS = [QuantConfig.parse(bits) for bits in ("w8a8", "w4a8", "w4a16", "w2a8")]
CONFIGS += [QuantConfig(Grid(bits), STATIC, ranges=ranges) for bits in (4, 8) for ranges in ("searched", "minmax")]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("kind", ["bert", "opt"])
def test_what_is_chosen_works(kind: str, config: QuantConfig) -> None:
    job = job_of(kind)
    assert fit(auto(job.kind, config), job, config) is not None
