"""What blocks are called with may be any structure, all of it written into, and no more is copied than has to be."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration

from test_wiring import BATCH, ROUNDED, own
from toys import batches, opt
from zsaq import QuantConfig, compensate, quantize_model, reconstruct
from zsaq.train.chain import Chain, beside, twin_of
from zsaq.train.pair import Capture, run_model
from zsaq.vision.models import feature_places


class Named(NamedTuple):
    state: Tensor
    extra: Tensor


class Fed(nn.Module):
    """Takes its tensors in a list or a named tuple, and may write into the second."""

    def __init__(self, listed: bool, inplace: bool) -> None:
        super().__init__()
        self.listed, self.inplace, self.layer = listed, inplace, nn.Linear(8, 8)

    def forward(self, given: Any) -> Any:
        x, skip = given
        x = self.layer(x).relu() + skip
        skip = skip.add_(x) if self.inplace else skip + x
        return [x, skip] if self.listed else Named(x, skip)


class Feeding(nn.Module):
    def __init__(self, listed: bool, inplace: bool) -> None:
        super().__init__()
        self.listed = listed
        self.a, self.b, self.unused = Fed(listed, inplace), Fed(listed, inplace), nn.Linear(8, 8)

    def forward(self, input: Tensor) -> Tensor:
        given = [input * 1, input * 2] if self.listed else Named(input * 1, input * 2)
        x, skip = self.b(self.a(given))
        return x + skip


@pytest.mark.parametrize("listed", [False, True])
def test_structures_are_calls_too_and_all_of_them_may_be_written_into(listed: bool) -> None:
    batch, states = {"input": torch.randn(16, 8, generator=torch.Generator().manual_seed(1))}, []
    for inplace in (False, True):
        torch.manual_seed(0)
        student = quantize_model(Feeding(listed, inplace).eval(), ROUNDED)
        blocks_of = [(name, student.get_submodule(name)) for name in ("a", "b")]
        states.append(compensate(student, [batch], blocks_of).state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_the_first_of_a_named_tuple_is_seen_and_the_tuple_handed_on() -> None:
    for inplace in (False, True):
        torch.manual_seed(0)
        model, capture = Feeding(False, inplace), Capture("teacher", Fed)
        out = run_model(model, {"input": torch.ones(2, 8)}, (capture,))
        assert [type(value) for _, value in out.seen[capture]] == [Tensor, Tensor]


@pytest.mark.parametrize("how", ["compensate", "reconstruct"])
def test_a_block_that_is_not_reached_is_told_before_anything_is_learned(how: str) -> None:
    torch.manual_seed(0)
    teacher = Feeding(False, False).eval()
    student, given = quantize_model(teacher, ROUNDED), [{"input": torch.randn(4, 8)}]
    before = {name: value.clone() for name, value in student.state_dict().items()}
    blocks_of = [(name, teacher.get_submodule(name)) for name in ("unused", "a", "b")]
    with pytest.raises(ValueError, match=r"\['unused'\] are not reached"):
        if how == "compensate":
            compensate(student, given, blocks_of)
        else:
            reconstruct(student, teacher, given, blocks_of, steps=2)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_what_blocks_share_is_copied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Masked(nn.Linear):
        def forward(self, input: Tensor, mask: Tensor) -> Tensor:
            return super().forward(input) * mask

    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Masked(8, 8) for _ in range(6))

        def forward(self, input: Tensor) -> Tensor:
            mask = input > 0
            for block in self.blocks:
                input = block(input, mask)
            return input

    copies: list[torch.dtype] = []
    clone = Tensor.clone
    monkeypatch.setattr(Tensor, "clone", lambda tensor: copies.append(tensor.dtype) or clone(tensor))
    chain = Chain(Stack(), [f"blocks.{number}" for number in range(6)], [{"input": torch.randn(2, 8)}])
    assert chain.forms == [0] * 6
    assert copies.count(torch.bool) == 1


def test_nothing_is_copied_where_nothing_is_written_into(monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[Tensor] = []
    clone = Tensor.clone
    monkeypatch.setattr(Tensor, "clone", lambda tensor: copies.append(tensor) or clone(tensor))
    for inplace, passes in ((False, [0, 0]), (True, [2, 2])):
        model, counts = own(inplace), []
        capture = Capture("teacher", feature_places(model))
        for _ in range(2):  # the first pass of the second net finds out
            copies.clear()
            run_model(model, BATCH, (capture,))
            counts.append(len(copies))
        assert counts == passes


def test_of_rows_behind_each_other_padding_does_not_count_either() -> None:
    model, given = opt(), batches(2, pad=True)
    own, whole = (Chain(model, ["model.decoder.layers.0.fc1"], given, last=True) for _ in range(2))
    calls = beside(own, twin_of(whole, 0), 0, 2**20, torch.device("cpu"))
    assert calls.counts is not None
    assert torch.equal(calls.counts, torch.cat([batch["attention_mask"].flatten() for batch in given]).bool())


@pytest.mark.parametrize("side", ["attention_mask", "decoder_attention_mask"])
@pytest.mark.parametrize("how", ["compensate", "reconstruct"])
def test_padding_before_a_decoder_that_reads_two_texts_is_refused(how: str, side: str) -> None:
    torch.manual_seed(0)
    config = T5Config(vocab_size=96, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, use_cache=False)
    teacher = T5ForConditionalGeneration(config).eval()
    student, full = quantize_model(teacher, QuantConfig.parse("w4a16")), batches(1)[0]
    half = batches(1, pad=True)[0]["attention_mask"]
    whole = {**full, "decoder_input_ids": full["input_ids"], "decoder_attention_mask": full["attention_mask"]}

    def rounded(batch: dict[str, Tensor], block: str) -> None:
        blocks = [(block, teacher.get_submodule(block))]
        if how == "compensate":
            compensate(student, [batch], blocks)
        else:
            reconstruct(student, teacher, [batch], blocks, steps=1)

    with pytest.raises(ValueError, match="give batches without padding"):
        rounded({**whole, side: half}, "decoder.block.0")
    rounded(whole, "decoder.block.0")
    rounded({**whole, side: half}, "encoder.block.0")
    length = full["input_ids"].shape[1]
    causal = torch.ones(length, length).tril().expand(len(half), 1, -1, -1)
    rounded({**whole, "decoder_attention_mask": causal}, "decoder.block.0")  # which is no padding


def test_a_mask_that_fits_in_no_way_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.block = nn.Embedding(96, 8), nn.Sequential(nn.Linear(8, 4))

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return self.block(self.table(input_ids)[:, 1:])

    student = quantize_model(Pooled(), QuantConfig.parse("w4a16"))
    for pad in (False, True):
        compensate(student, batches(1, pad=pad), [("block", student)])
        told = "block: 0 reads [8, 9, 8], which attention_mask fits in no way" in capsys.readouterr().err
        assert told == pad
