"""Students of every number format: saved, loaded and rounded at load they answer alike, and count their bits."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as T
from torch import nn

import zsaq
from zsaq import QuantConfig, ZsaqConfig, coverage, quantize_model
from zsaq.deploy.compressed.layout import store_codes
from zsaq.deploy.integers import Integers
from zsaq.quant.layers import parameter_groups, quant_layers
from zsaq.quant.packed import packed_layers
from zsaq.quant.sizes import bits_per_weight
from zsaq.train.inundation import weight_codes

TEXTS = [
    "w4a16e8h8g32", "w4a16g64-nf4", "w8a16-fp8", "w4a16-fp4", "w4a16-mxfp4", "w4a16-nvfp4", "w4a8h8-nvfp4",
    "w4a16e8g32-s16", "w4a16g64-nf4-s16", "w3a16g128", "w2a16g64", "w4a8b32", "w2a8b256", "w2a8b256-ternary",
    "w4a8b32-mxfp4",
]  # fmt: skip


def llama(width: int = 256) -> Any:
    torch.manual_seed(0)
    config = T.LlamaConfig(
        vocab_size=64, hidden_size=width, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=width, max_position_embeddings=32, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return T.LlamaForCausalLM(config).eval()


def answers(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(3, 13)[None]).logits


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("ranges", ["searched", "learned"])
def test_students_of_every_text_are_saved_and_come_back_bit_for_bit(text: str, ranges: Any, tmp_path: Path) -> None:
    config = QuantConfig.parse(text)
    config = QuantConfig.from_dict(config.to_dict() | {"ranges": ranges})
    teacher = llama()
    student = quantize_model(teacher, config)
    if ranges == "learned":
        step = torch.optim.SGD(parameter_groups(student, 1e-2))
        student(torch.arange(3, 13)[None]).logits.square().mean().backward()
        step.step()
    zsaq.save(student, tmp_path / "x")
    again = zsaq.load(tmp_path / "x")
    assert torch.equal(answers(again), answers(student)) and coverage(again) == coverage(student)
    again.save_pretrained(tmp_path / "y")
    assert torch.equal(answers(T.AutoModelForCausalLM.from_pretrained(tmp_path / "y")), answers(student))
    files = (tmp_path / "x").glob("*.safetensors")
    size = sum(int(file.stat().st_size) for file in files)
    count = sum(parameter.numel() for parameter in teacher.parameters())
    assert bits_per_weight(again) == bits_per_weight(student)
    assert 0 <= 8 * size / count - bits_per_weight(student) < 0.3  # headers and decoys
    if ranges == "searched":
        teacher.save_pretrained(tmp_path / "floats")
        rounded = type(teacher).from_pretrained(tmp_path / "floats", quantization_config=ZsaqConfig(config))
        assert torch.equal(answers(rounded), answers(student))


def test_bits_per_weight_are_those_of_the_formats() -> None:
    teacher = llama()
    assert bits_per_weight(teacher) == 32
    whole = sum(p.numel() for p in teacher.parameters())
    floats = sum(p.numel() for p in teacher.parameters() if p.ndim == 1)
    table = teacher.model.embed_tokens.weight.numel()
    rest = whole - floats - table
    for text, bits in (("w4a16-mxfp4", 4 + 8 / 32), ("w4a16-nvfp4", 4 + 8 / 16), ("w4a16g32-s16", 4.5)):
        expected = (rest * bits + 32 * (floats + table) + (7 * 32 if "nv" in text else 0)) / whole
        assert bits_per_weight(quantize_model(teacher, text)) == pytest.approx(expected)


def test_coverage_tells_the_format() -> None:
    told = coverage(quantize_model(llama(), "w4a16e8-nvfp4"))
    assert told["model.layers.0.mlp.up_proj"] == "weights 4-bit fp4 per group of 16, scales in E4M3, inputs float"
    assert told["model.embed_tokens"] == "weights 8-bit per channel"


def test_a_cast_keeps_the_scales_of_every_format(tmp_path: Path) -> None:
    for text in ("w4a16-mxfp4", "w4a16-nvfp4", "w4a16g32-s16"):
        zsaq.save(quantize_model(llama(), text), tmp_path / text)
        model = zsaq.load(tmp_path / text)
        before = {name: buffer.clone() for name, buffer in model.named_buffers() if name.endswith(("scale", "unit"))}
        nn.Module.to(model, torch.bfloat16)
        after = dict(model.named_buffers())
        assert before and all(torch.equal(after[name], buffer) for name, buffer in before.items())
        assert all(after[name].dtype == buffer.dtype for name, buffer in before.items())
        again = zsaq.load(tmp_path / text, dtype=torch.bfloat16)
        for (name, layer), (_, other) in zip(packed_layers(model), packed_layers(again), strict=True):
            assert torch.equal(layer.unpacked(torch.bfloat16), other.unpacked(torch.bfloat16)), name


def test_gptq_leaves_weights_on_the_levels_that_it_chose() -> None:
    teacher = llama(64)
    batches = [{"input_ids": torch.randint(3, 64, (4, 16), generator=torch.Generator().manual_seed(0))}]
    for text in ("w8a16-fp8", "w4a16g32-nf4", "w4a16-nvfp4"):
        plain, student = quantize_model(teacher, text), quantize_model(teacher, text)
        zsaq.gptq(student, batches, [("model.layers.0", teacher.model.layers[0])])
        with torch.no_grad():
            wanted = teacher(**batches[0]).logits
            far, near = ((model(**batches[0]).logits - wanted).norm() for model in (plain, student))
        assert near < far, text
        for _, layer in quant_layers(student):
            assert layer.weight.isfinite().all()


@pytest.mark.parametrize("text", ["w4a16g32-s16", "w4a16-mxfp4", "w4a16-nvfp4", "w4a16g32-nf4", "w8a16-fp8"])
def test_runtimes_read_scales_of_every_format_and_refuse_levels_without_a_kernel(text: str, tmp_path: Path) -> None:
    config = QuantConfig.parse(text)
    zsaq.save(quantize_model(llama(64), text), tmp_path / "x")
    layer = next(layer for name, layer in packed_layers(zsaq.load(tmp_path / "x")) if "proj" in name)
    if config.weight is not None and config.weight.uniform:
        integers, (codes, scale, bits, _) = Integers.of(layer), store_codes(layer)
        wide = scale.repeat_interleave(layer.shape[1] // scale.shape[1], 1)
        assert torch.equal(codes * wide, layer.dequantized(torch.float32)) and bits == 4
        assert torch.equal(integers.scale, scale)
        return
    with pytest.raises(ValueError, match="levels are not evenly spaced"):
        Integers.of(layer)
    with pytest.raises(ValueError, match="levels, which the format does not have"):
        store_codes(layer)


def test_learned_rounding_ends_on_scales_that_files_hold(tmp_path: Path) -> None:
    teacher, weight = llama(64), zsaq.Grid(4, per=32, scales="e8m0")
    batches = [{"input_ids": torch.arange(3, 35).view(2, 16)}]
    for config in (QuantConfig.parse("w4a16g32-s16"), QuantConfig(weight)):
        student = quantize_model(teacher, config)
        zsaq.reconstruct(student, teacher, batches, [("model.layers.0", teacher.model.layers[0])], steps=2, joint=True)
        zsaq.save(student, tmp_path / "x")
        assert torch.equal(answers(zsaq.load(tmp_path / "x")), answers(student))


def test_inundation_sees_the_codes_of_every_format() -> None:
    for text in ("w4a16g32-nf4", "w4a16-nvfp4", "w8a16-fp8-s16"):
        student = quantize_model(llama(64), text)
        for codes, (_, layer) in zip(weight_codes(student), quant_layers(student), strict=True):
            assert torch.equal(codes(codes.rows()), layer.weight_quantizer.codes(layer.rows())[0].float())
