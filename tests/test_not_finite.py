"""What is not finite is named before it is used, and where it appears in the middle the student is not lost."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

import zsaq
from language_toys import bert, bpe, opt, wordpiece
from toys import batches, gpt2
from vision_toys import resnet
from zsaq import Grid, QuantConfig, quantize_model
from zsaq.language.models import Vocabulary, blocks
from zsaq.language.sam_sga import student_of, student_optimizer
from zsaq.language.writing import write
from zsaq.quant.tokens import check_tokens
from zsaq.train.gptq import compensate
from zsaq.train.loop import Loop
from zsaq.train.objectives import KL, LogitMSE
from zsaq.train.optim import NotFinite
from zsaq.train.pair import Batch
from zsaq.train.reconstruction import reconstruct
from zsaq.train.streams import repeat
from zsaq.train.synthesis import Source, Synthesizer
from zsaq.train.trainer import distill
from zsaq.vision import models
from zsaq.vision.alternation import alternate

W4 = QuantConfig.parse("w4a8")
LOOP = Loop(Accelerator(cpu=True))


def spoiled(model: Any, value: float = torch.nan, name: str | None = None) -> Any:
    model = copy.deepcopy(model)
    with torch.no_grad():
        dict(model.named_parameters())[name or [*dict(model.named_parameters())][2]].view(-1)[0] = value
    return model


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("method", ["zsaq-paper", "llm-qat", "gptq"])
def test_a_generator_s_broken_weights_are_named_before_a_step(method: str, value: float) -> None:
    with pytest.raises(ValueError, match=r"the generator OPTFor.* not finite \(model.*take another generator"):
        generator = spoiled(opt(bpe()), value), bpe()
        zsaq.quantize(bert(wordpiece()), "w4a8", method=method, tokenizer=wordpiece(), generator=generator, loop=LOOP)


def test_a_generator_whose_answers_overflow_is_named() -> None:
    generator: Any = opt(bpe())
    with torch.no_grad():
        generator.model.decoder.final_layer_norm.weight.fill_(3e38)
    with pytest.raises(NotFinite, match="answers of the generator OPTForCausalLM are not finite: take another"):
        write(generator, Vocabulary.of(generator, bpe()), 2, 4, rng=torch.Generator())


def test_a_student_with_a_broken_weight_has_no_nonsense_rate() -> None:
    student = spoiled(student_of(gpt2(), W4), name="transformer.h.0.mlp.c_fc.weight_quantizer.ranges.scale")
    with pytest.raises(ValueError, match=r"the weights of transformer\.h\.0\.mlp\.c_fc are not finite"):
        student_optimizer(student, 0.01)


class Climb:
    """An adversary that falls at its second step."""

    def __init__(self) -> None:
        self.steps = 0

    def ascend(self, divergence: Any) -> dict[str, float]:
        self.steps += 1
        if self.steps == 2:
            raise NotFinite("the generator's step is not finite")
        return {"up": 1.0}


def test_a_climb_that_is_not_finite_keeps_the_student() -> None:
    teacher = gpt2()
    student = quantize_model(teacher, W4)
    adam = torch.optim.SGD(student.parameters(), 0.1)
    before = copy.deepcopy(student.state_dict())
    with pytest.raises(NotFinite) as stop:
        distill(student, teacher, repeat(batches(1)), KL(), adam, 9, LOOP, adversary=Climb(), ratio=(1, 1))
    assert stop.value.student is student
    assert any(not torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert all(p.isfinite().all() for p in student.parameters())


class Falling(Source):
    """Images whose third batch is not finite."""

    def __init__(self, last: int = 2) -> None:
        super().__init__()
        self.images, self.count, self.last = nn.Parameter(torch.randn(4, 3, 16, 16)), 0, last

    def forward(self) -> Batch:
        self.count += 1
        return {"pixel_values": self.images * (torch.nan if self.count > self.last else 1.0)}


@pytest.mark.parametrize("last", [0, 2, 4])
def test_a_game_s_source_that_is_not_finite_keeps_the_student(last: int) -> None:
    """In the warm-up, in calibration, in training."""
    teacher = resnet()
    student = quantize_model(teacher, QuantConfig(Grid(4), Grid(8, per="tensor")))
    source = Falling(last)
    game = Synthesizer(source, LogitMSE(), torch.optim.SGD(source.parameters(), 0.1), teacher, student)
    adam = torch.optim.SGD(student.parameters(), 1e-3)
    with pytest.raises(NotFinite, match=rf"step {last + 1}: the loss is nan") as stop:
        alternate(student, teacher, game, LogitMSE(), adam, 9, warmup=1, calibration=2, loop=LOOP)
    assert stop.value.student is student


def images() -> Iterator[Batch]:
    yield {"pixel_values": torch.randn(4, 3, 16, 16)}


def test_a_reconstruction_that_is_not_finite_keeps_the_student() -> None:
    teacher = resnet()
    student = quantize_model(teacher, QuantConfig(Grid(4)))
    two = models.blocks(teacher)[:2]
    with torch.no_grad():
        next(two[1][1].parameters()).fill_(torch.nan)  # the second block's twin
    with pytest.raises(NotFinite, match=rf"block {two[1][0]}, step 1: the loss is not finite") as stop:
        reconstruct(student, teacher, images(), two, steps=2, loop=LOOP)
    kept = stop.value.student
    assert kept is student and all(p.isfinite().all() for p in student.parameters())


def test_gptq_on_inputs_that_are_not_finite_keeps_the_student() -> None:
    student = spoiled(quantize_model(gpt2(), W4), name="transformer.h.1.ln_1.weight")
    with pytest.raises(NotFinite, match=r"inputs of transformer\.h\.1\.attn\.c_attn are not finite") as stop:
        compensate(student, batches(1), blocks(student), loop=LOOP)
    assert stop.value.student is student


@pytest.mark.parametrize("token", ["eos_token", "pad_token", "sep_token"])
def test_a_tokenizer_with_tokens_beyond_the_table_is_named(token: str) -> None:
    teacher, tokenizer = bert(wordpiece()), wordpiece()
    tokenizer.add_special_tokens({token: "[beyond]"})
    with pytest.raises(ValueError, match=rf"beyond the \d+ tokens of BertForSeq.*{token[:9]}"):
        zsaq.quantize(teacher, "w4a8", method="zsaq", tokenizer=tokenizer, generator=(opt(bpe()), bpe()), loop=LOOP)


@pytest.mark.parametrize("ids", [{"eos_token_id": 10**6}, {"bos_token_id": 10**6}, {"eos_token_id": [1, 10**6]}])
def test_a_generator_whose_configuration_ends_beyond_its_table_is_named(ids: dict[str, Any]) -> None:
    generator = opt(bpe())
    for name, value in ids.items():
        setattr(generator.config, name, value)
    with pytest.raises(ValueError, match=r"(eos|bos) is token 1000000, and OPTForCausalLM has \d+ rows"):
        Vocabulary.of(generator, bpe())
    check_tokens(generator, bpe())
