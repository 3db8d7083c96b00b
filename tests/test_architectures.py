"""The sweep of architectures: a few here, all of them behind the marker."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from recipes.benchmarks.architectures import FAULT, REFUSED, YES, bits_of, measure, student_of, table
from recipes.benchmarks.text_models import TEXT
from recipes.benchmarks.tiny import answers, inputs_of, tiny
from recipes.benchmarks.vision_models import VISION
from zsaq import save

FEW = ["AlbertForSequenceClassification", "Gemma2ForCausalLM", "BartForConditionalGeneration", "RwkvForCausalLM"]
FEW += ["SwinForImageClassification", "MobileViTForImageClassification", "ViTMSNForImageClassification"]


@pytest.mark.parametrize("name", FEW)
def test_a_few_come_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    row = measure(name, tmp_path / "model", onnx=False)
    assert row.equal == YES and float(row.share) > 0.5, row


def test_what_draws_in_every_mode_is_saved_too(tmp_path: Path) -> None:
    teacher = tiny("ViTMAEForPreTraining")
    folder = save(student_of(teacher, "w4a8"), tmp_path / "model")
    assert (folder / "model.safetensors").is_file()


def test_there_are_as_many_as_the_page_says() -> None:
    assert len(TEXT) >= 46 and len(VISION) >= 32 and not TEXT.keys() & VISION.keys()


def test_the_same_model_every_time_with_scores_that_matter() -> None:
    one, other = tiny("Gemma2ForCausalLM"), tiny("Gemma2ForCausalLM")
    inputs = inputs_of(one)
    first = answers(one, inputs)[0]
    assert (first == answers(other, inputs)[0]).all()
    other.config.attn_logit_softcapping = None
    for layer in other.model.layers:
        layer.self_attn.attn_logit_softcapping = None
    assert float((first - answers(other, inputs)[0]).abs().max() / first.abs().max()) > 0.05


def test_a_table_has_a_row_a_model(tmp_path: Path) -> None:
    row = measure("IBertForSequenceClassification", tmp_path / "model")
    assert row.share.startswith(REFUSED) and not row.faults
    unknown = measure("NoSuchModel", tmp_path / "other")
    assert unknown.share.startswith(f"{FAULT}: AttributeError") and unknown.faults
    assert table([row, unknown]).count("\n") == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TEXT, *VISION])
def test_nothing_ends_in_a_fault(name: str, tmp_path: Path) -> None:
    for bits in bits_of(name):
        assert measure(name, tmp_path / bits, bits).faults == []
