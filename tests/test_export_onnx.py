"""Language students in ONNX Runtime: the same logits as the loaded student, at other lengths than were traced."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from toys import spread
from zsaq import Grid, QuantConfig, load, quantize_model
from zsaq.deploy.onnx.write import to_onnx
from zsaq.quant.codes import groups
from zsaq.quant.packed import packed_layers

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
VOCABULARY = 200


def bert() -> Any:
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
            max_position_embeddings=24,
        )
    )  # fmt: skip


def gpt2() -> Any:
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=2, n_positions=24, bos_token_id=0, eos_token_id=0
    )
    return GPT2LMHeadModel(config)


def llama() -> Any:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=24,
        )
    )  # fmt: skip


def opt() -> Any:
    return OPTForCausalLM(
        OPTConfig(
            vocab_size=VOCABULARY, hidden_size=64, word_embed_proj_dim=32, num_hidden_layers=2, num_attention_heads=2,
            ffn_dim=128, max_position_embeddings=24,
        )
    )  # fmt: skip


BLOCKS = QuantConfig(Grid(2, levels="half", per=32), Grid(8, per=32), embedding=Grid(4))
TABLE = QuantConfig(
    Grid(4), Grid(8, per="token"), rules=(("*wte", QuantConfig(embedding=Grid(8), input=Grid(8, per="token"))),)
)


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    ids = torch.randint(0, VOCABULARY, (3, 11))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}


@torch.no_grad()
def answer(model: Any, given: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits, and for each text whether all its roundings are decided: none within floats' noise of a tie."""
    nearest = []

    def look(layer: Any, args: tuple[Tensor, ...]) -> None:
        quantizer = layer.input_quantizer
        view = groups(args[0], quantizer.grid)
        scale, zero = quantizer.ranges(view, quantizer.grid)
        away = ((view / scale + zero).remainder(1) - 0.5).abs()
        nearest.append(away.reshape(len(given["input_ids"]), -1).amin(1))

    layers = [layer for _, layer in packed_layers(model) if layer.input_quantizer is not None]
    hooks = [layer.register_forward_pre_hook(look) for layer in layers]
    logits = model(**given).logits
    for hook in hooks:
        hook.remove()
    return logits, torch.stack(nearest).amin(0) > 1e-5 if nearest else torch.ones(len(logits), dtype=torch.bool)


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


def test_a_table_of_a_width_without_blocks_is_refused_with_what_helps(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"vocab_size": 96, "hidden_size": 30, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = spread(BertForSequenceClassification(BertConfig(**sizes, intermediate_size=45)))
    for text in ("w4a8", "w4a8e16"):
        quantize_model(model, text).save_pretrained(tmp_path / text)
    with pytest.raises(ValueError, match=r"token table of 30 columns in 1 groups .*leave the table in floats \(e16\)"):
        to_onnx(tmp_path / "w4a8", tmp_path / "onnx")
    assert to_onnx(tmp_path / "w4a8e16", tmp_path / "onnx")["layers"]


@pytest.mark.parametrize(
    ("make", "config"),
    [
        (bert, QuantConfig.parse("w2a8")),
        (bert, BLOCKS),
        (gpt2, TABLE),
        slow(bert, QuantConfig.parse("w2a8-ternary")),
        slow(bert, QuantConfig.parse("w4a8g32")),
        slow(bert, QuantConfig.parse("w4a16")),
        slow(bert, QuantConfig.parse("w3a8")),
        slow(bert, QuantConfig(Grid(4, symmetric=False), None)),
        slow(gpt2, QuantConfig.parse("w4a8")),
        slow(llama, QuantConfig.parse("w2a8")),
        slow(opt, QuantConfig.parse("w4a8")),
    ],
)
def test_logits_agree(make: Callable[[], Any], config: QuantConfig, inputs: dict[str, Tensor], tmp_path: Path) -> None:
    quantize_model(make().eval(), config).save_pretrained(tmp_path / "student")
    model = load(tmp_path / "student")
    facts = to_onnx(tmp_path / "student", tmp_path / "onnx")
    assert set(facts["layers"]) == {name for name, _ in packed_layers(model)}
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = onnxruntime.InferenceSession(str(tmp_path / "onnx/model.onnx"), options)
    given = {name: inputs[name] for name in facts["inputs"]}
    (logits,) = session.run(None, {name: value.numpy() for name, value in given.items()})
    wanted, decided = answer(model, given)
    seen = given["attention_mask"][..., None].bool() if wanted.ndim == 3 else torch.ones(1, dtype=torch.bool)
    error = (torch.from_numpy(np.abs(logits - wanted.numpy())) * seen).flatten(1).amax(1)
    assert decided.any()
    assert float(error[decided].max() / wanted.abs().max()) < 1e-5
