"""What is loaded answers as the student that was saved does, bit for bit, in every dtype and for a single token."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import zsaq
from toys import batches, bert, gpt2, llama, opt, spread
from zsaq import Grid, QuantConfig


def wide_gpt2() -> Any:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=96, n_embd=128, n_layer=2, n_head=2, n_positions=64, pad_token_id=0)
    return spread(GPT2LMHeadModel(config))


def wide_llama() -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 97, "hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 2}
    return spread(LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, tie_word_embeddings=False)))


def came_back(student: Any, folder: Path, **batch: torch.Tensor) -> bool:
    student.save_pretrained(folder)
    loaded = [zsaq.load(folder), type(student).from_pretrained(folder, dtype="auto")]
    with torch.no_grad():
        return all(torch.equal(student(**batch).logits, each.eval()(**batch).logits) for each in loaded)


@pytest.mark.parametrize("make", [wide_gpt2, wide_llama])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 33), (8, 10)])
def test_rows_of_any_length(make: Any, dtype: torch.dtype, shape: tuple[int, int], tmp_path: Path) -> None:
    teacher = make()
    for parameter in teacher.parameters():  # rotary frequencies, which no file holds, are float32 in every dtype
        parameter.data = parameter.data.to(dtype)
    student = zsaq.quantize_model(teacher, "w4a8")
    ids = torch.randint(2, 96, shape, generator=torch.Generator().manual_seed(0))
    assert came_back(student, tmp_path / "s", input_ids=ids)


@pytest.mark.parametrize("make", [bert, gpt2, llama, opt])
@pytest.mark.parametrize(
    "config",
    ["w4a8", "w4a16g16", "w4a16g16-nf4", QuantConfig(Grid(4), ranges="minmax")],
    ids=["w4a8", "g16", "nf4", "minmax"],
)
def test_float64(make: Any, config: Any, tmp_path: Path) -> None:
    assert came_back(zsaq.quantize_model(make().double(), config), tmp_path / "s", **batches(1)[0])
