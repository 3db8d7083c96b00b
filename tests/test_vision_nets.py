"""transformers' nets of images by random weights: every layer reached or told, saved, loaded and exported."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageClassification

sys.path.insert(0, str(Path(__file__).parent.parent))

import zsaq
from recipes.benchmarks.tiny import SIDE, inputs_of, tiny
from zsaq.deploy.parity import verify
from zsaq.quant.layers import quant_layers
from zsaq.vision.heads import has_head
from zsaq.vision.models import attentions, blocks, has_attentions, last_feature_map, layers

BLOCKS = {  # how many of them stand beside single layers, in the models of `tiny`
    "EfficientNet": 7, "RegNet": 4, "ResNet": 4, "ConvNext": 4, "ConvNextV2": 4, "MobileNetV1": 0, "MobileNetV2": 16,
    "ViT": 2, "DeiT": 2, "Swin": 2, "Dinov2": 2, "Dinov2WithRegisters": 2, "CLIP": 2, "Siglip": 2, "MetaClip2": 2,
    "ViTMSN": 2, "IJepa": 2, "Beit": 2,
}  # fmt: skip
ATTENTIVE = list(BLOCKS)[7:]
CASES = [(name, "rtn-noise") for name in BLOCKS] + [(name, "psaq") for name in ATTENTIVE]
LONG = ("EfficientNet", "MobileNetV1", "MobileNetV2", "RegNet", "IJepa", "ViTMSN", "MetaClip2", "Beit")
SPEC = zsaq.ImageSpec(classes=2, size=SIDE)


def teacher_of(name: str):
    return tiny(f"{name}ForImageClassification")


@pytest.mark.parametrize("name", BLOCKS)
def test_what_is_known_of_an_architecture(name: str) -> None:
    teacher = teacher_of(name)
    named = blocks(teacher)
    assert sum(len(layers(module)) > 1 for _, module in named) == BLOCKS[name]
    assert sum(len(layers(module)) for _, module in named) == len(layers(teacher))
    assert has_attentions(teacher) == (name in ATTENTIVE)
    assert name not in ATTENTIVE or set(attentions(teacher).values()) <= {2, 4}
    assert has_head(teacher)
    (place,) = last_feature_map(teacher, SPEC).names
    seen: list[Any] = []
    teacher.get_submodule(place).register_forward_hook(lambda _, __, y: seen.append(y))
    teacher(**inputs_of(teacher))
    assert seen[0].ndim in (3, 4) and seen[0].shape[0] == 2


@pytest.mark.parametrize(
    ("name", "method"), [pytest.param(*c, marks=[pytest.mark.slow] * (c[0] in LONG), id="-".join(c)) for c in CASES]
)
def test_a_student_reaches_every_layer_and_comes_back(name: str, method: str, tmp_path: Path) -> None:
    teacher = teacher_of(name)
    options: dict[str, Any] = {"image_steps": 2} if method == "psaq" else {}
    size = getattr(teacher.config, "vision_config", teacher.config).to_dict().get("image_size")
    options |= {} if size == SIDE else {"spec": SPEC}
    student = zsaq.quantize(teacher, "w4a8", method=method, images=4, **options)
    told = {name: how for name, how in zsaq.coverage(student).items() if how.startswith("left alone")}
    assert {name for name, _ in layers(student)} == {name for name, _ in quant_layers(student)}
    assert {name for name, _ in layers(teacher)} <= dict(quant_layers(student)).keys() | told.keys()
    student.save_pretrained(tmp_path / "student")
    again, inputs = AutoModelForImageClassification.from_pretrained(tmp_path / "student"), inputs_of(teacher)
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, student(**inputs).logits)


@pytest.mark.slow
@pytest.mark.parametrize("name", BLOCKS)
def test_a_student_agrees_in_onnx_runtime(name: str, tmp_path: Path) -> None:
    zsaq.quantize(teacher_of(name), "w4a8", method="rtn-noise", images=4, spec=SPEC).save_pretrained(
        tmp_path / "student"
    )
    zsaq.export(tmp_path / "student", "onnx", size=(SIDE, SIDE))
    report = verify(tmp_path / "student", write=False)
    assert report["agrees"], report["zsaq onnx"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT", "Siglip", "CLIP", "Dinov2WithRegisters", "Swin"])
def test_rounding_is_learned_block_by_block(name: str) -> None:
    student = zsaq.quantize(
        teacher_of(name), "w4a4p8", method="psaq-learned", images=4, image_steps=2, steps=2, batch_size=2, spec=SPEC
    )
    assert len([how for how in zsaq.coverage(student).values() if how.startswith("products of 8-bit")]) >= 2
