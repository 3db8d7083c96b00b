"""What has no form in GPTQ's layout is refused by name, and what was changed in a file is found."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from students import one_thread
from test_export_gptq import ASYMMETRIC, PARSE, SIZES, llama, student
from zsaq.deploy.gptq.read import Checkpoint
from zsaq.deploy.parity import verify
from zsaq.deploy.runtimes import export

__all__ = ["one_thread"]


def vit() -> PreTrainedModel:
    sizes = {key: value for key, value in SIZES.items() if key not in ("vocab_size", "max_position_embeddings")}
    return ViTForImageClassification(ViTConfig(**sizes, image_size=8, patch_size=4))


def t5() -> PreTrainedModel:
    return T5ForConditionalGeneration(T5Config(vocab_size=96, d_model=64, d_kv=32, d_ff=64, num_layers=1, num_heads=2))


def mixtral() -> PreTrainedModel:
    return MixtralForCausalLM(MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=2))


def narrow() -> PreTrainedModel:
    sizes: dict[str, Any] = SIZES | {"intermediate_size": 48}
    return LlamaForCausalLM(LlamaConfig(**sizes))


REFUSED = {
    "nf4": (llama, PARSE("w4a16g32-nf4"), r"model\.layers\.0\.self_attn\.q_proj: its weights have nf4 levels"),
    "groups of 8": (llama, PARSE("w4a16g8"), "groups are of 8 inputs.*g32, g64 or g128"),
    "narrow": (narrow, PARSE("w4a16"), r"mlp\.gate_proj: it has 64 inputs and 48 outputs, .* multiples of 32"),
    "images": (vit, PARSE("w4a16"), "take text, and this model pixel_values"),
    "two lists": (t5, PARSE("w4a16"), r"decoder\.block and encoder\.block, and GPTQ's layout has one list"),
    "experts": (mixtral, PARSE("w4a16"), r"also quantizes model\.layers\.0\.mlp\.experts.*PackedExpertLinear"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_form_is_refused_by_name(case: str, tmp_path: Path) -> None:
    make, config, message = REFUSED[case]
    folder = student(make, config, tmp_path / "student")
    with pytest.raises(ValueError, match=message) as error:
        export(folder, "gptq")
    assert "export it to ONNX instead" in str(error.value) and "\n" not in str(error.value)
    assert not (folder / "gptq").exists()


def test_scales_beyond_float16_are_refused(tmp_path: Path) -> None:
    def large() -> PreTrainedModel:
        model = llama()
        with torch.no_grad():
            model.get_parameter("model.layers.1.mlp.up_proj.weight").mul_(1e8)
        return model

    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj: a scale is beyond float16"):
        export(student(large, PARSE("w4a16"), tmp_path / "student"), "gptq")


HALF = ["w2a16", "w2a16g32", "w2a16-s16"]


@pytest.mark.parametrize("name", ["w4a16g32", "w4a16", "w2a16-ternary", "asymmetric", *HALF])
def test_rows_of_zeros_are_stored_with_a_scale_that_float16_holds(name: str, tmp_path: Path) -> None:
    def pruned() -> PreTrainedModel:
        model = llama()
        with torch.no_grad():
            model.get_parameter("model.layers.1.mlp.down_proj.weight")[3] = 0
            model.get_parameter("model.layers.0.self_attn.q_proj.weight").zero_()
        return model

    folder = student(pruned, ASYMMETRIC if name == "asymmetric" else PARSE(name), tmp_path / "student")
    told = export(folder, "gptq")["changed"]
    assert not [change for change in told if "rounded" in change and "by at most 1" in change]  # of what is not zero
    assert any("rows or groups of zeros" in change for change in told) == (name in HALF)
    found = Checkpoint.read(folder / "gptq")
    assert not found.weight("model.layers.1.mlp.down_proj")[3].any()
    assert not found.weight("model.layers.0.self_attn.q_proj").any()
    assert all(bool((tensors["scales"] != 0).all()) for tensors in found.packed.values())
    assert verify(folder, write=False)["agrees"]


@pytest.mark.parametrize(("name", "remedy"), [("w4a16", "-s16; or"), ("w2a16", "-s16 and 3 bits or more")])
def test_scales_beyond_float16_are_refused_with_what_helps(name: str, remedy: str, tmp_path: Path) -> None:
    def beyond() -> PreTrainedModel:
        model = llama()
        with torch.no_grad():
            model.get_parameter("model.layers.1.mlp.up_proj.weight")[3] = 0
            model.get_parameter("model.layers.1.mlp.up_proj.weight")[4].mul_(1e-6 if name == "w4a16" else 1e8)
        return model

    with pytest.raises(
        ValueError, match=rf"layers\.1\.mlp\.up_proj: a scale is beyond float16.* quantize with {remedy}"
    ):
        export(student(beyond, PARSE(name), tmp_path / "student"), "gptq")


def test_a_wrong_code_is_found_and_named(tmp_path: Path) -> None:
    folder = student(llama, PARSE("w4a16g32"), tmp_path / "student")
    export(folder, "gptq")
    file, name = folder / "gptq" / "model.safetensors", "model.layers.1.mlp.down_proj"
    tensors = load_file(file)
    tensors[f"{name}.qweight"][3, 5] ^= 0x40
    save_file(tensors, file)
    report = verify(folder, write=False)
    assert not report["agrees"] and report["gptq"]["disagree"] == [name] and report["zsaq torch"]["agrees"]
    del tensors[f"{name}.qzeros"]
    save_file(tensors, file)
    assert "no checkpoint in GPTQ's layout" in verify(folder, write=False)["gptq"]["error"]


CHANGES: dict[str, Any] = {
    "activation": {"hidden_act": "gelu"},
    "heads": {"num_attention_heads": 1},
    "groups": {"quantization_config": {"group_size": 64}},
    "signs": {"quantization_config": {"sym": False}},
    "method": {"quantization_config": {"quant_method": "awq"}},
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = student(llama, PARSE("w4a16g32"), tmp_path_factory.mktemp("written") / "student")
    export(folder, "gptq")
    return folder


@pytest.fixture
def config(written: Path) -> Iterator[Path]:
    """Of the export, which is as it was when the test has changed it."""
    file = written / "gptq" / "config.json"
    text = file.read_text()
    yield file
    file.write_text(text)


def change(config: Path, by: dict[str, Any]) -> None:
    said = json.loads(config.read_text())
    nested = said["quantization_config"] | by.get("quantization_config", {})
    config.write_text(json.dumps(said | by | {"quantization_config": nested}))


@pytest.mark.parametrize("case", CHANGES)
def test_a_config_that_says_otherwise_disagrees(case: str, written: Path, config: Path) -> None:
    change(config, CHANGES[case])
    report = verify(written, write=False)
    assert not report["agrees"] and "config.json" in report["gptq"]["error"] and report["zsaq torch"]["agrees"]


def test_a_second_config_that_says_nothing_disagrees(tmp_path: Path) -> None:
    folder = student(llama, PARSE("w4a16g32"), tmp_path / "student")
    export(folder, "gptq")
    assert verify(folder, write=False)["agrees"]
    (folder / "gptq" / "quantize_config.json").write_text("{}")
    assert "quantize_config.json" in verify(folder, write=False)["gptq"]["error"]


@pytest.mark.parametrize(
    "by", [*({"bits": n} for n in (10**12, 0, -4, "4", True, 3.5, 5)), {"checkpoint_format": "marlin"}], ids=str
)
def test_a_width_or_format_that_the_layout_does_not_have_is_told(by: Any, written: Path, config: Path) -> None:
    change(config, {"quantization_config": by})
    assert "no checkpoint in GPTQ's layout" in verify(written, write=False)["gptq"]["error"]


def test_groups_that_are_not_there_are_told(tmp_path: Path) -> None:
    folder = student(llama, PARSE("w4a16g32"), tmp_path / "student")
    export(folder, "gptq")
    file, key = folder / "gptq" / "model.safetensors", "model.layers.1.mlp.down_proj.g_idx"
    tensors = load_file(file)
    for groups in (tensors[key] - 1, tensors[key] + 1, tensors[key][1:]):
        save_file(tensors | {key: groups}, file)
        report = verify(folder, write=False)
        assert "no checkpoint in GPTQ's layout" in report["gptq"]["error"]
