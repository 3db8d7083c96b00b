"""GPTQ's layout: the codes as they are, read back by its formula; what differs is told, what has no form refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
)

from reference_gptq_layout import stream
from students import one_thread
from zsaq.deploy.gptq.layout import words
from zsaq.deploy.gptq.read import Checkpoint, values
from zsaq.deploy.parity import verify
from zsaq.deploy.runtimes import export
from zsaq.io.loading import load
from zsaq.io.saving import save
from zsaq.quant.config import Grid, QuantConfig
from zsaq.quant.model import quantize_model
from zsaq.quant.packed import PackedConv1D, packed_layers

__all__ = ["one_thread"]
SIZES: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 24,
}  # fmt: skip


def llama(**more: Any) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=1, **more))


def tied() -> PreTrainedModel:
    return llama(tie_word_embeddings=True)


def half() -> PreTrainedModel:
    return llama(tie_word_embeddings=True).bfloat16()


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=96, n_embd=64, n_layer=1, n_head=2, n_positions=24, bos_token_id=0, eos_token_id=0)
    )


def bert() -> PreTrainedModel:
    return BertForSequenceClassification(BertConfig(**SIZES))


def opt() -> PreTrainedModel:
    sizes = {key: value for key, value in SIZES.items() if key != "intermediate_size"}
    return OPTForCausalLM(OPTConfig(**sizes, ffn_dim=96, word_embed_proj_dim=32))


ASYMMETRIC = QuantConfig(Grid(4, symmetric=False, per=32))
MIXED = QuantConfig(
    Grid(3, per=32),
    Grid(8, per="token"),
    rules=(("*.q_proj", QuantConfig(Grid(2, levels="half"))), ("*.o_proj", QuantConfig(Grid(4, False, per=64)))),
)
LEFT = QuantConfig(Grid(4, per=32), rules=(("*.layers.0.mlp.down_proj", None),))
PARSE = QuantConfig.parse
CASES: dict[str, tuple[Callable[[], PreTrainedModel], QuantConfig, tuple[int, int, bool]]] = {
    "plain": (llama, PARSE("w4a16g32"), (4, 32, True)),
    "channels": (llama, PARSE("w4a16"), (4, -1, True)),
    "eight": (tied, PARSE("w8a16g32-s16"), (8, 32, True)),
    "three": (llama, PARSE("w3a8g32"), (3, 32, True)),
    "five": (llama, PARSE("w5a16"), (8, -1, True)),
    "half levels": (llama, PARSE("w2a8"), (4, -1, True)),
    "ternary": (llama, PARSE("w2a8-ternary"), (2, -1, True)),
    "tensor": (llama, QuantConfig(Grid(8, per="tensor")), (8, -1, True)),
    "united": (llama, QuantConfig(Grid(4, per=16, scales="e4m3")), (4, 16, True)),
    "asymmetric": (llama, ASYMMETRIC, (4, 32, False)),
    "mixed": (llama, MIXED, (4, 32, False)),
    "left": (llama, LEFT, (4, 32, True)),
    "ends": (llama, PARSE("w4a8e8h8g32"), (4, 32, True)),
    "tied": (tied, PARSE("w4a8e8h8g32-s16"), (4, 32, True)),
    "bfloat16": (half, PARSE("w4a16e8h8g32"), (4, 32, True)),
    "gpt2": (gpt2, PARSE("w4a8e8h8g32"), (4, 32, True)),
    "bert": (bert, PARSE("w4a8e4"), (4, -1, True)),
    "opt": (opt, PARSE("w4a16g32"), (4, 32, True)),
}


def student(make: Callable[[], PreTrainedModel], config: QuantConfig, folder: Path) -> Path:
    torch.manual_seed(0)
    return save(quantize_model(make().eval(), config), folder)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    root, facts = tmp_path_factory.mktemp("gptq"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")
        for case, (make, config, _) in CASES.items():
            facts[case] = export(student(make, config, root / case), "gptq")
    return root, facts


@pytest.mark.parametrize("case", CASES)
def test_weights_are_the_codes_times_their_scales_in_float16(case: str, exported: Any) -> None:
    root, facts = exported
    model = load(root / case, dtype=torch.float32)
    found = Checkpoint.read(root / case / "gptq")
    weights, others = {name: found.weight(name) for name in found.packed}, found.others
    layers = dict(packed_layers(model))
    assert len(weights) == facts[case]["layers"] > 0 and set(weights) <= set(layers)
    for name, weight in weights.items():
        layer = layers[name]
        exact = layer.unpacked(torch.float32)
        scale = layer.scales().flatten(1).expand(layer.shape[0], -1)
        scale = scale.repeat_interleave(layer.shape[1] // scale.shape[1], 1)
        codes = (exact / scale * 2).round() / 2  # less their zero, maybe half integers
        assert torch.equal(weight, codes * scale.half().float()), name
        if case in ("eight", "tied"):
            assert torch.equal(weight, exact)
    for name, layer in layers.items():
        if name not in weights and layer.table is None:
            assert torch.equal(others[f"{name}.weight"], layer.weight.to(others[f"{name}.weight"].dtype))
    assert not [key for key in others if key.endswith((".codes", ".scale", ".zero"))]


@pytest.mark.parametrize("case", CASES)
def test_configs_say_what_lies_there_and_the_parity_report_agrees(case: str, exported: Any) -> None:
    root = exported[0]
    bits, group, symmetric = CASES[case][2]
    place = root / case / "gptq"
    said = json.loads((place / "config.json").read_text())["quantization_config"]
    assert said == json.loads((place / "quantize_config.json").read_text())
    assert (said["quant_method"], said["desc_act"], said["checkpoint_format"]) == ("gptq", False, "gptq")
    assert (said["bits"], said["group_size"], said["sym"]) == (bits, group, symmetric)
    assert "meta" not in said and ("dynamic" in said) == ("modules_in_block_to_quantize" in said) == (case == "left")
    tensors = load_file(place / "model.safetensors")
    for key, value in tensors.items():
        if key.endswith(".qweight"):
            name, outputs = key.removesuffix(".qweight"), value.shape[1]
            inputs = len(tensors[f"{name}.g_idx"])
            groups = 1 if group == -1 else inputs // group
            assert tensors[f"{name}.g_idx"].tolist() == [i // (inputs // groups) for i in range(inputs)]
            assert value.shape == (inputs * bits // 32, outputs) and value.dtype == torch.int32
            assert tensors[f"{name}.qzeros"].shape == (groups, outputs * bits // 32)
            assert tensors[f"{name}.scales"].shape == (groups, outputs)
            assert tensors[f"{name}.scales"].dtype == torch.float16
    report = verify(root / case, write=False)
    assert report["agrees"], report["gptq"]
    assert report["gptq"]["student_by_this_rule"] < 0.1


def test_words_and_values_are_those_of_the_reference() -> None:
    for bits in (2, 3, 4, 8):
        codes = torch.randint(0, 2**bits, (3, 64), generator=torch.Generator().manual_seed(bits))
        packed = words(codes, bits)
        assert packed.tolist() == [stream(row, bits) for row in codes.tolist()]
        assert torch.equal(values(packed.T, bits).T, codes.int())


def test_symmetric_zeros_are_stored_less_one(exported: Any) -> None:
    tensors = load_file(exported[0] / "plain" / "gptq" / "model.safetensors")
    assert {int(v) for k, t in tensors.items() if k.endswith("qzeros") for v in t.unique()} == {0x77777777}
    tensors = load_file(exported[0] / "eight" / "gptq" / "model.safetensors")
    assert {int(v) for k, t in tensors.items() if k.endswith("qzeros") for v in t.unique()} == {0x7F7F7F7F}


def test_a_zero_of_zero_is_in_the_second_format(tmp_path: Path) -> None:
    def positive() -> PreTrainedModel:
        model = llama()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.abs_()
        return model

    folder = student(positive, ASYMMETRIC, tmp_path / "student")
    assert export(folder, "gptq")["checkpoint_format"] == "gptq_v2"
    assert min(int(layer.zero.min()) for _, layer in packed_layers(load(folder))) == 0
    assert verify(folder, write=False)["agrees"]


def test_what_differs_is_told(exported: Any) -> None:
    _, facts = exported

    def told(case: str, words: str) -> bool:
        return any(words in change for change in facts[case]["changed"])

    assert facts["eight"]["changed"] == []
    assert told("plain", "scales are rounded to float16, by at most 4.") and not told("tied", "rounded to float16")
    assert told("ends", "inputs are floats, which the student rounds to 8 bits") and not told("plain", "inputs")
    assert told("half levels", "2c + 1 in 4 bits") and told("five", "codes of 5 bits are stored in 8")
    assert told("mixed", "codes of 3 bits are stored in 4") and told("mixed", "repeated for groups of 32")
    assert told("ends", "model.embed_tokens: stored in floats") and told("ends", "lm_head: stored in floats")
    assert told("ends", "0.0246 MB where the student has 0.00653")
    assert told("bert", "bert.pooler.dense: stored in floats") and told("opt", "project_in: stored in floats")
    for case in CASES:
        assert facts[case]["student_bytes"] == (exported[0] / case / "model.safetensors").stat().st_size
        assert facts[case]["bytes"] == (exported[0] / case / "gptq" / "model.safetensors").stat().st_size
    said = json.loads((exported[0] / "left" / "gptq" / "quantize_config.json").read_text())
    assert said["dynamic"] == {r"-:^model\.layers\.0\.mlp\.down_proj$": {}}
    assert ["model.layers.1.mlp.down_proj"] in said["modules_in_block_to_quantize"]


def test_negative_scales_stay_and_are_told(tmp_path: Path) -> None:
    folder = student(llama, PARSE("w4a16g32-s16"), tmp_path / "student")
    model = load(folder)
    turned = [layer for name, layer in packed_layers(model) if name.endswith("q_proj")]
    for layer in turned:
        layer.scale[::2] *= -1
    model.save_pretrained(tmp_path / "turned")
    facts = export(tmp_path / "turned", "gptq")
    assert facts["changed"][0] == "2 layers have negative scales, as the student has: readers multiply with them"
    assert verify(tmp_path / "turned", write=False)["agrees"]


def test_conv1d_is_stored_like_a_linear_layer(exported: Any) -> None:
    model = load(exported[0] / "gpt2")
    layers = {n: m for n, m in packed_layers(model) if isinstance(m, PackedConv1D)}
    tensors = load_file(exported[0] / "gpt2" / "gptq" / "model.safetensors")
    assert len(layers) == 4
    for name, layer in layers.items():
        assert tensors[f"{name}.qweight"].shape == (layer.weight.shape[0] // 8, layer.weight.shape[1])
