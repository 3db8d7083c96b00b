import itertools
import math
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import teachers
import zsaq
from commands import run
from language_toys import bpe, job_of
from zsaq import QuantConfig, calibrate
from zsaq.io.saving import save, weight_bytes
from zsaq.language import allocation
from zsaq.language.allocation import WIDTHS, Choice, allocate, mixed
from zsaq.language.information import information
from zsaq.language.job import TextJob
from zsaq.language.size import Size
from zsaq.quant.model import coverage, quantize_model
from zsaq.student import load


def layers(count: int, seed: int, odd: bool = False) -> list[list[Choice]]:
    rng = torch.Generator().manual_seed(seed)
    found = []
    for number in range(count):
        size, weight = (3 + number % 3) * (8 if not odd else 7 + number), float(torch.rand((), generator=rng))
        found.append([Choice(b, size * b, weight * 4.0**-b) for b in WIDTHS[:4]])
    return found


def job(name: str) -> TextJob:
    teacher, tokenizer = teachers.objects(name)
    made = TextJob.of(teacher, tokenizer, max_length=16) if name != "bert" else job_of("bert")
    return made


def size_at(made: TextJob, share: float) -> Size:
    """Between the least and the most that the job's students may take."""
    with pytest.raises(ValueError, match="out of reach") as told:
        mixed(made, Size(0.1))
    least, most = map(float, re.findall(r"([0-9.]+) bits a weight \(", str(told.value))[1:])
    return Size(least + share * (most - least))


def test_layers_of_one_weight_have_no_bits_by_size() -> None:
    teacher, tokenizer = teachers.objects("llama")
    first, second = (block.mlp.up_proj for block in teacher.model.layers[:2])
    second.weight = first.weight
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.up_proj and .*layers\.1\.mlp\.up_proj share a weight"):
        zsaq.quantize(teacher, bits=4.5, method="rtn", tokenizer=tokenizer)


@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_no_other_choice_within_the_budget_costs_less(share: float, odd: bool) -> None:
    every = layers(5, 1, odd)
    least, most = (sum(choices[end].bytes for choices in every) for end in (0, -1))
    budget = least + int(share * (most - least))
    chosen = allocate(every, budget)
    assert sum(choice.bytes for choice in chosen) <= budget
    within = (each for each in itertools.product(*every) if sum(choice.bytes for choice in each) <= budget)
    best = min(sum(choice.cost for choice in each) for each in within)
    assert math.isclose(sum(choice.cost for choice in chosen), best, rel_tol=1e-12)


@pytest.mark.parametrize("cells", [allocation.CELLS, 7])
def test_what_is_chosen_grows_with_the_budget_and_fills_it(cells: int, monkeypatch) -> None:
    monkeypatch.setattr(allocation, "CELLS", cells)  # so few that sizes are rounded
    every = layers(12, 2, odd=True)
    least, most = (sum(choices[end].bytes for choices in every) for end in (0, -1))
    costs = []
    for budget in range(least, most + 1, (most - least) // 9):
        chosen = allocate(every, budget)
        left = budget - sum(choice.bytes for choice in chosen)
        pairs = [(choices, choices.index(c)) for choices, c in zip(every, chosen, strict=True) if c != choices[-1]]
        after = [choices[k + 1].bytes - choices[k].bytes for choices, k in pairs]
        assert left >= 0 and all(step > left for step in after)
        costs.append(sum(choice.cost for choice in chosen))
    assert cells == 7 or costs == sorted(costs, reverse=True)
    assert [choice.bits for choice in allocate(every, most)] == [WIDTHS[3]] * 12


def test_information_is_the_mean_square_of_the_answers_gradients() -> None:
    """Against all answers of two positions, weighed by their probabilities."""
    model = job_of("opt").start
    weight = model.model.decoder.layers[0].fc1.weight
    batch = {"input_ids": torch.tensor([[5, 9]]), "attention_mask": torch.ones(1, 2, dtype=torch.long)}
    said = model(**batch).logits[0].log_softmax(-1)
    exact = torch.zeros(())
    for place, token in itertools.product(range(2), range(said.shape[1])):
        (grad,) = torch.autograd.grad(said[place, token], weight, retain_graph=True)
        exact += said[place, token].detach().exp() * grad.square().sum()
    before = [parameter.requires_grad for parameter in model.parameters()]
    found = information(model, {"fc1": weight}, [batch] * 200, 0)
    assert math.isclose(found["fc1"], float(exact) / 2 / weight.numel(), rel_tol=0.15)
    assert weight.grad is None and [parameter.requires_grad for parameter in model.parameters()] == before


@pytest.mark.parametrize("name, static", [("opt", False), ("opt", True), ("llama", False), ("bert", False)])
def test_a_student_takes_no_more_than_was_asked_and_comes_back(name: str, static: bool, tmp_path, capsys) -> None:
    made = job(name)
    weights, size = sum(p.numel() for p in made.start.parameters()), size_at(made, 0.3)
    size = replace(size, inputs=8, static=True) if static else size
    config = mixed(made, size)
    student = calibrate(quantize_model(made.start, config), [next(made.noise(0))])
    folder = save(student, tmp_path / "student")
    assert 0.85 * size.bytes(weights) <= weight_bytes(folder) <= size.bytes(weights)
    assert "bits by size" in capsys.readouterr().err
    assert len({grid.bits for _, own in config.rules if own and (grid := own.weight or own.embedding)}) > 1
    assert coverage(load(folder)) == coverage(student)


def test_a_smaller_size_lets_no_layer_grow_on_the_whole() -> None:
    made, errors = job("opt"), []
    ids = next(made.noise(1))
    for share in (0.0, 0.3, 1.0):
        student = quantize_model(made.start, mixed(made, size_at(made, 0.01 + 0.98 * share)))
        said, meant = (model(**ids).logits.detach().log_softmax(-1) for model in (student, made.start))
        errors.append(float(F.kl_div(said, meant, log_target=True, reduction="batchmean")))
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("size", [Size(1.0), Size(40.0), Size(0.001, True), Size(100.0, True)])
def test_a_size_out_of_reach_is_told_with_the_least_and_the_most(size: Size) -> None:
    with pytest.raises(ValueError, match=r"out of reach of OPTForCausalLM.* bits a weight \(.* MB\) to .* MB\)"):
        mixed(job("opt"), size)


def test_what_is_not_changed_stays_and_the_same_seed_chooses_the_same() -> None:
    made = job("llama")
    before = {key: value.clone() for key, value in made.start.state_dict().items()}
    size = Size(9.0, inputs=8, group=16)
    configs = [mixed(made, size) for _ in range(2)]
    assert configs[0] == configs[1]
    assert all(torch.equal(value, before[key]) for key, value in made.start.state_dict().items())
    assert made.batch_size == 16 and QuantConfig.from_saved(configs[0].to_dict()) == configs[0]
    own = dict(configs[0].rules)["model.layers.0.mlp.up_proj"]
    assert own is not None and own.weight is not None and own.weight.per == 16 and own.input is not None


@pytest.mark.parametrize(
    "text, size",
    [
        ("3.2", Size(3.2)),
        ("3", Size(3.0)),
        (" 3.25A8G32 ", Size(3.25, inputs=8, group=32)),
        ("100MB", Size(100.0, True)),
        ("3.2a8s", Size(3.2, inputs=8, static=True)),
        ("0.5mba8g64", Size(0.5, True, 8, 64)),
        *(
            (other, None)
            for other in (
                "w4a8",
                "",
                "a8",
                "MB",
                "3.2e8",
                "3.2a4",
                "3.2a16s",
                "3.2s",
                "-3",
                "1e3",
                "\u0663",
                QuantConfig(),
                3.2,
                None,
            )
        ),
    ],
)
def test_a_size_is_a_number_of_bits_or_of_megabytes(text: object, size: Size | None) -> None:
    assert Size.of(text) == size


@pytest.mark.parametrize(
    "given, word",
    [
        ({"target_mb": 0}, "target_mb is 0"),
        ({"target_mb": math.nan}, "target_mb is nan"),
        ({"target_mb": True}, "target_mb is True"),
        ({"target_mb": "12"}, "target_mb is '12'"),
        ({"target_mb": 12, "bits": 3.2}, "give one of"),
        ({"target_mb": 12, "config": "w4a8"}, "give one of"),
        ({"bits": "w4a8", "config": "w4a8"}, "give one of"),
        ({"bits": 0.5}, "out of reach"),
        ({"bits": "three"}, "is no quantization"),
    ],
)
def test_a_size_that_cannot_be_is_refused(given: dict[str, Any], word: str) -> None:
    teacher, tokenizer = teachers.objects("llama")
    with pytest.raises(ValueError, match=word):
        zsaq.quantize(teacher, tokenizer=tokenizer, method="rtn", **given)


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_a_student_by_size_from_the_top(method: str, tmp_path) -> None:
    teacher, tokenizer = teachers.objects("llama")
    weights = sum(p.numel() for p in teacher.parameters())
    options: dict[str, Any] = {} if method == "rtn" else {"calibration": 1}
    teacher.train()
    student = zsaq.quantize(teacher, target_mb=1.05 * weights / 1e6, method=method, tokenizer=tokenizer, **options)
    student.save_pretrained(tmp_path / "student")
    assert weight_bytes(tmp_path / "student") <= 1.05 * weights and teacher.training
    again: Any = zsaq.load(tmp_path / "student")
    assert again.zsaq.results.config == student.zsaq.results.config


def test_an_image_model_has_no_bits_by_size() -> None:
    with pytest.raises(ValueError, match="100"):
        zsaq.quantize(teachers.objects("resnet")[0], target_mb=100, spec=16)


def test_a_model_whose_answers_are_no_distribution_is_refused() -> None:
    with pytest.raises(ValueError, match="answers no distribution"):
        mixed(TextJob.of(teachers.objects("bert")[0].bert, bpe()), Size(4.0))


@pytest.mark.parametrize("words", [["--bits", "9"], ["--target_mb", "0.045"]])
def test_the_command_line_takes_a_size(words: list[str], tmp_path) -> None:
    folder = teachers.folder_of(tmp_path / "llama", *teachers.objects("llama"))
    done = run("quantize", str(folder), *words, "--method", "rtn", "--output_dir", str(tmp_path / "out"))
    assert done.exit_code == 0 and "bits by size" in done.stderr
    assert weight_bytes(tmp_path / "out") <= 46_000
