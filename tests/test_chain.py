from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    PreTrainedModel,
    SwinConfig,
    SwinForImageClassification,
    T5Config,
    T5EncoderModel,
)

from toys import batches, bert, gpt2, llama, opt
from vision_toys import images, vit
from zsaq.language.models import blocks
from zsaq.train.calls import call_of
from zsaq.train.chain import Chain, equal


def gemma() -> PreTrainedModel:
    torch.manual_seed(0)
    return Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=128, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=2,
            num_key_value_heads=1, head_dim=16, sliding_window=4, max_position_embeddings=64,
            layer_types=["sliding_attention", "full_attention"] * 2,
        )
    ).eval()  # fmt: skip


def swin() -> PreTrainedModel:
    torch.manual_seed(0)
    config = SwinConfig(image_size=16, patch_size=2, embed_dim=8, depths=[2, 2], num_heads=[1, 2], window_size=2)
    return SwinForImageClassification(config).eval()


def t5() -> PreTrainedModel:
    torch.manual_seed(0)
    return T5EncoderModel(T5Config(vocab_size=128, d_model=16, d_kv=8, d_ff=32, num_layers=3, num_heads=2)).eval()


def texts(pad: bool = True) -> list[dict[str, Tensor]]:
    return batches(3, pad=pad)


def pictures() -> list[dict[str, Tensor]]:
    return [{"pixel_values": images(2, 16)} for _ in range(2)]


@pytest.mark.parametrize("make", [bert, gpt2, llama, opt, gemma])
@pytest.mark.parametrize("pad", [False, True])
def test_a_chain_calls_each_block_as_a_whole_pass_does(make: Callable[[], Any], pad: bool) -> None:
    check(make(), texts(pad), linked=True)


def test_a_vision_transformer_is_a_chain() -> None:
    check(vit(), pictures(), linked=True)


@pytest.mark.parametrize(("make", "given"), [(t5, texts), (swin, pictures)])
def test_blocks_that_are_no_chain_are_called_by_passes_that_start_anew(make: Any, given: Any) -> None:
    """T5's blocks hand each other a bias; between Swin's stages stands something else."""
    model = make()
    listed = blocks(model) if make is t5 else [(n, m) for n, m in model.named_modules() if "Layer" in type(m).__name__]
    names = [name for name, module in listed if hasattr(module, "attention") or make is t5]
    check(model, given(), linked=False, names=names)


def test_a_chain_hears_what_became_of_the_blocks_before() -> None:
    model, given = llama(), texts()
    names = [name for name, _ in blocks(model)]
    chain = Chain(model, names, given)
    chain.calls(0)
    with torch.no_grad():
        for parameter in model.get_submodule(names[0]).parameters():
            parameter.mul_(1.5)
    chain.answered(0)
    for (args, kwargs), batch in zip(chain.calls(1), given, strict=True):
        assert equal(call_of(model, model.get_submodule(names[1]), batch, answers=False)[:2], (args, kwargs))


def test_a_block_that_is_called_twice_is_no_link() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, input: Tensor) -> Tensor:
            return self.b(self.a(self.a(input)))

    assert not Chain(Twice(), ["a", "b"], [{"input": torch.randn(3, 4)}]).forms


def check(model: Any, given: list[dict[str, Tensor]], linked: bool, names: list[str] | None = None) -> None:
    names = names or [name for name, _ in blocks(model)]
    before = {name: vars(module).get("forward") for name, module in model.named_modules()}
    chain = Chain(model, names, given)
    assert (chain.forms is not None) is linked
    for number, name in enumerate(names):
        for (args, kwargs), batch in zip(chain.calls(number), given, strict=True):
            assert equal(call_of(model, model.get_submodule(name), batch, answers=False)[:2], (args, kwargs))
        chain.answered(number)
    assert before == {name: vars(module).get("forward") for name, module in model.named_modules()}
