"""The inputs that a model takes: sizes of images from processor, config or flag, limits of texts; what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as of
from transformers import PreTrainedConfig

from zsaq.io.inputs import LENGTH, READABLE, SIDE, image_shape, random_inputs, text_limit
from zsaq.io.loading import auto_class_of
from zsaq.io.record import Record
from zsaq.quant.positions import ends

TOWER: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "patch_size": 8,
}
TEXT: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "max_position_embeddings": 12, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
}  # fmt: skip
BOTH: dict[str, Any] = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
}
BART: dict[str, Any] = TEXT | BOTH | {"encoder_attention_heads": 2, "decoder_attention_heads": 2}


class Processor:
    def __init__(self, **facts: Any) -> None:
        self.facts = facts

    def to_dict(self) -> dict[str, Any]:
        return self.facts


def resnet(channels: int = 3) -> Any:
    config = of.ResNetConfig(num_channels=channels, embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    return of.ResNetForImageClassification(config)


def nested(kind: str, **tower: Any) -> Any:
    config = getattr(of, f"{kind}Config")(text_config=TEXT, vision_config=TOWER | tower)
    return getattr(of, f"{kind}ForImageClassification")(config)


RESIZED = {"do_resize": True, "size": {"height": 24, "width": 40}}
CROPPED = {"do_resize": True, "size": {"shortest_edge": 36}, "do_center_crop": True, "crop_size": 32}


@pytest.mark.parametrize(
    ("processor", "shape"),
    [
        (None, (SIDE, SIDE)),
        (RESIZED, (24, 40)),
        ({"do_resize": True, "size": {"shortest_edge": 36}}, (36, 36)),
        ({"do_resize": True, "size": 20}, (20, 20)),
        (CROPPED, (32, 32)),
        (CROPPED | {"do_center_crop": False}, (36, 36)),
        (RESIZED | {"do_pad": True, "pad_size": {"height": 48, "width": 48}}, (48, 48)),
        ({"do_resize": False, "size": 20}, (SIDE, SIDE)),
        ({"do_resize": True, "size": {"max_height": 3}}, (SIDE, SIDE)),
        ({"do_resize": True, "size": "32"}, (SIDE, SIDE)),
    ],
)
def test_a_processor_tells_the_size(processor: dict[str, Any] | None, shape: tuple[int, int], tmp_path: Path) -> None:
    """As a part of the student, and as a file beside a loaded one, alone or within that of a whole processor."""
    model = resnet()
    if processor is None:
        assert image_shape(model) == (3, *shape)
        return
    vars(model)["zsaq"] = Record(parts=(Processor(**processor),))
    assert image_shape(model) == (3, *shape)
    vars(model)["zsaq"] = Record(files=tmp_path)
    whole = {"image_processor": processor}
    for name, facts in (("preprocessor_config.json", processor), ("processor_config.json", whole)):
        (tmp_path / name).write_text(json.dumps(facts))
        assert image_shape(model) == (3, *shape)
        (tmp_path / name).unlink()


@pytest.mark.parametrize(
    "text", ["{", "[]", "[" * 10_000, " " * (READABLE + 1), '{"image_processor": 3}', '{"size": [1]}'], ids=range(6)
)
def test_a_processor_that_cannot_be_read_is_none(text: str, tmp_path: Path) -> None:
    model = resnet()
    vars(model)["zsaq"] = Record(files=tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(text)
    assert image_shape(model) == (3, SIDE, SIDE)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nested("CLIP", image_size=32), (3, 32, 32)),
        (lambda: nested("Siglip", image_size=32), (3, 32, 32)),
        (lambda: of.ViTForImageClassification(of.ViTConfig(**TOWER, image_size=[16, 24])), (3, 16, 24)),
        (lambda: of.ViTForImageClassification(of.ViTConfig(**TOWER, image_size=16, num_channels=1)), (1, 16, 16)),
        (lambda: resnet(1), (1, SIDE, SIDE)),
        (lambda: resnet(5), (5, SIDE, SIDE)),
    ],
    ids=["clip", "siglip", "not square", "grey", "grey by its stem", "many channels"],
)
def test_else_the_config_or_a_nested_one_does(make: Any, shape: tuple[int, ...]) -> None:
    model = make()
    assert image_shape(model) == shape
    inputs = random_inputs(model, (2,))
    if shape[1] != SIDE:
        model.eval()(**inputs)
    assert inputs["pixel_values"].shape == (2, *shape)


def test_a_size_that_is_given_comes_first() -> None:
    model = resnet()
    vars(model)["zsaq"] = Record(parts=(Processor(**RESIZED),))
    assert random_inputs(model, (1,), size=(16, 8))["pixel_values"].shape == (1, 3, 16, 8)
    for size in ((0, 8), (8, 5000), (-1, -1)):
        with pytest.raises(ValueError, match="a side has 1 to 4096"):
            image_shape(model, size)
    none: list[Any] = [(48.0, 48.0), "48", (3, 48, 48), (48,), (), True, {"edge": 48}, (np.int64(48), np.int64(48))]
    for size in none:
        with pytest.raises(ValueError, match=r"size is .*, which is no size of images: give \(height, width\)"):
            image_shape(model, size)
    with pytest.raises(ValueError, match="reads text; a size is one of images"):
        random_inputs(of.BertModel(of.BertConfig(**TEXT)), (1, 2), size=(8, 8))


@pytest.mark.parametrize(
    ("kind", "options", "limit"),
    [
        ("BertModel", TEXT, 12),
        ("RobertaModel", TEXT, 10),  # positions begin behind that of padding
        ("MPNetModel", TEXT, 10),
        ("CamembertModel", TEXT, 10),
        ("OPTModel", TEXT | {"ffn_dim": 16, "word_embed_proj_dim": 16}, 12),
        ("GPT2Model", {"vocab_size": 50, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 9}, 9),
        ("MptModel", {"vocab_size": 50, "d_model": 16, "n_layers": 1, "n_heads": 2, "max_seq_len": 7}, 7),
        ("BloomModel", {"vocab_size": 50, "hidden_size": 16, "n_layer": 1, "n_head": 2}, LENGTH),
        ("BartModel", BART, 12),
    ],
)
def test_texts_of_the_longest_length_run_and_longer_ones_are_refused(
    kind: str, options: dict[str, Any], limit: int
) -> None:
    make = getattr(of, kind)
    model = make(make.config_class(**options)).eval()
    assert text_limit(model) == limit
    if limit < LENGTH:
        model(**random_inputs(model, (2, limit)))
        with pytest.raises(ValueError, match=f"takes {limit} tokens"):
            random_inputs(model, (1, limit + 1))


@pytest.mark.parametrize(
    ("kind", "options", "rows"),
    [
        ("RobertaModel", TEXT, [10]),
        ("OPTModel", TEXT | {"ffn_dim": 16, "word_embed_proj_dim": 16}, [12]),
        ("BartModel", BART, [12, 12]),
        ("T5Model", {"vocab_size": 50, "d_model": 16, "d_ff": 16, "num_layers": 1, "n_positions": 9}, []),
        ("LlamaModel", TEXT, []),
    ],
)
def test_tables_of_positions_tell_how_many_tokens_they_have_rows_for(
    kind: str, options: dict[str, Any], rows: list[int]
) -> None:
    make = getattr(of, kind)
    names = ["input_ids", "decoder_input_ids"]
    assert ends(make(make.config_class(**options)), names) == dict(zip(names, rows, strict=False))


def test_a_decoder_gets_tokens_of_its_own_and_each_text_one_end() -> None:
    config = of.BartConfig(**dict[str, Any](BART, num_labels=2))
    model = of.BartForSequenceClassification(config).eval()
    inputs = random_inputs(model, (3, 6))
    assert set(inputs) == {"input_ids", "attention_mask", "decoder_input_ids"}
    assert (inputs["input_ids"] == 2).sum(1).tolist() == [1, 1, 1]
    with torch.no_grad():
        assert model(**inputs).logits.shape == (3, 2)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("BertForMultipleChoice", TEXT), ("WhisperForConditionalGeneration", BART), ("ASTForAudioClassification", TOWER)],
)
def test_what_reads_something_else_is_refused_by_name(kind: str, options: dict[str, Any]) -> None:
    make = getattr(of, kind)
    with pytest.raises(ValueError, match=f"{kind} reads .*random inputs are known for"):
        random_inputs(make(make.config_class(**options)), (1, 4))


@pytest.mark.parametrize(
    "kind",
    [
        *("T5ForConditionalGeneration", "T5EncoderModel", "BartForConditionalGeneration", "MarianMTModel"),
        *("SegformerForSemanticSegmentation", "DetrForObjectDetection", "DPTForDepthEstimation"),
        *(
            "ASTForAudioClassification",
            "WhisperForConditionalGeneration",
            "Wav2Vec2ForCTC",
            "ViTForMaskedImageModeling",
        ),
        *("CLIPVisionModelWithProjection", "CLIPModel", "BertForPreTraining", "BertForNextSentencePrediction"),
        *("BertForSequenceClassification", "LlamaForCausalLM", "ViTForImageClassification", "BertModel"),
    ],
)
def test_the_class_that_was_saved_is_found_without_a_flag(kind: str) -> None:
    own = getattr(of, kind)
    config = own.config_class(architectures=[kind])
    auto: Any = auto_class_of(config)
    built = auto if auto is own else auto._model_mapping[type(config)]
    assert own in (built if isinstance(built, tuple) else (built,))


@pytest.mark.parametrize(
    "architectures",
    [
        None,
        [],
        ["NoSuchModel"],
        ["AutoModel"],
        ["PreTrainedModel"],
        ["os"],
        ["LlamaForCausalLM"],
        [3],
        "BertModel",
        [["x"]],
    ],
)
def test_a_class_that_is_none_of_transformers_is_refused(architectures: Any) -> None:
    config: PreTrainedConfig = of.BertConfig()
    config.architectures = architectures
    with pytest.raises(ValueError, match="transformers has no such class for BertConfig: give auto_class"):
        auto_class_of(config)
