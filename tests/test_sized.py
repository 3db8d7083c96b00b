"""Bits by size beside the rest of a run: what they have read is known, and read alike by all processes."""

from typing import Any

import pytest
import torch
from accelerate import PartialState, debug_launcher
from accelerate.state import AcceleratorState, GradientState

import zsaq
from language_toys import bert, bpe, opt, wordpiece
from zsaq import Loop
from zsaq.language.allocation import configured
from zsaq.language.information import information
from zsaq.subject import Subject
from zsaq.train.loop import processes

WRITER = "a writer"
SIZE = "12a8"


def classifier(method: str, **more: Any) -> Any:
    tokenizer = wordpiece()
    writer = opt(bpe())
    writer.name_or_path = WRITER
    options: dict[str, Any] = {"calibration": 1} if method == "gptq" else {}
    return zsaq.quantize(
        bert(tokenizer), SIZE, method=method, tokenizer=tokenizer, generator=(writer, bpe()), **options, **more
    )


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_the_prompts_of_text_by_which_bits_were_chosen_are_known(method: str, capsys: Any) -> None:
    student = classifier(method, prompts=["A film:", "A story:"])
    known, said = student.zsaq.results.knowledge, capsys.readouterr().err
    assert known == (
        f"bits chosen by size, on text of {WRITER}",
        "prompts given",
        "prompt: A film:",
        "prompt: A story:",
    )
    assert "not read by" not in said


def test_a_corpus_is_known_beside_them() -> None:
    texts = ["the film is good", "a story was bad"] * 8
    known = classifier("gptq", prompts=["A film:"], corpus=texts).zsaq.results.knowledge
    assert "unknown origin" in known[0] and known[1:] == (
        f"bits chosen by size, on text of {WRITER}", "prompts given", "prompt: A film:",
    )  # fmt: skip


def test_bits_of_a_text_leave_no_words_behind() -> None:
    tokenizer = bpe()
    plain, sized = (
        zsaq.quantize(opt(tokenizer), config, method="rtn", tokenizer=tokenizer) for config in ("w4a16", "11")
    )
    assert plain.zsaq.results.knowledge == ()
    assert sized.zsaq.results.knowledge == ("bits chosen by size, on text of the model itself",)


def one_of_two(expected: Any) -> None:
    """Both processes choose what one alone does, where they share their batches."""
    loop = Loop(processes(), shared=True)
    subject = Subject.of(opt(bpe()), tokenizer=bpe(), shared=loop.shared)
    assert configured(subject.job, "11") == expected  # type: ignore[arg-type]


def test_processes_that_share_batches_choose_the_bits_of_one() -> None:
    expected = configured(Subject.of(opt(bpe()), tokenizer=bpe()).job, "11")  # type: ignore[arg-type]
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    debug_launcher(one_of_two, (expected,), num_processes=2)


def test_text_is_shared_before_bits_are_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """In `quantize` and `compare`, whose methods learn of it only when they begin."""
    seen: list[bool] = []

    def chosen(job: Any, config: Any) -> Any:
        seen.append(job.shared)
        return configured(job, "w4a16")

    monkeypatch.setattr("zsaq.subject.configured", chosen)
    tokenizer = bpe()
    loop = Loop(shared=True)
    zsaq.quantize(opt(tokenizer), "20", tokenizer=tokenizer, method="rtn", loop=loop)
    zsaq.compare(opt(tokenizer), ["20"], ["rtn"], tokenizer=tokenizer, loop=loop)
    assert len(seen) >= 2 and all(seen)


@pytest.mark.parametrize("where", ["final", "first"])
def test_answers_that_overflow_are_told(where: str) -> None:
    model: Any = opt(bpe())
    weight = model.model.decoder.final_layer_norm.weight if where == "final" else model.lm_head.weight
    with torch.no_grad():
        weight.mul_(1e38)
    batch = {"input_ids": torch.tensor([[5, 9]]), "attention_mask": torch.ones(1, 2, dtype=torch.long)}
    with pytest.raises(ValueError, match="not finite, by which no bits can be chosen: give a configuration"):
        information(model, {"fc1": model.model.decoder.layers[0].fc1.weight}, [batch], 0)
