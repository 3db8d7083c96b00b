"""What `zsaq.quantize` refuses before anything is spent, with what there is instead."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForTokenClassification

import zsaq
from language_toys import bert, bpe, opt, wordpiece
from vision_toys import cnn, convnext, resnet, vit
from zsaq import QuantConfig


def text(**options: Any) -> Any:
    return zsaq.quantize(bert(wordpiece()), **({"config": "w4a8", "tokenizer": wordpiece()} | options))


def image(**options: Any) -> Any:
    return zsaq.quantize(resnet(), **({"config": "w4a4", "spec": 16} | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "magic"}, "method is 'magic'; for BertForSequenceClassification give one of rtn-minmax, rtn"),
        ({"method": "genie"}, "method is 'genie'; for BertForSequenceClassification"),
        ({"method": "zsaq", "stesp": 3}, "zsaq has no option stesp; its options are steps=2000, warm=0"),
        ({"method": "rtn", "steps": 3}, "rtn has no option steps; its options are none"),
        ({"method": "zsaq", "steps": 0}, "steps is 0; give an integer of at least 1"),
        ({"method": "zsaq", "lr": "x"}, "lr is 'x'; give a finite number"),
        ({"method": "zsaq-paper", "ratio": 5}, "ratio is 5; give 2 values"),
        ({"effort": "heroic"}, "effort is 'heroic'; give one of light, default, best"),
        ({"method": lambda *_: None, "effort": "heroic"}, "effort is 'heroic'"),
        ({"preset": "brecq"}, "preset is 'brecq': presets are for images"),
        ({"config": "w9a8"}, "'w9a8' is no quantization"),
        ({"config": 4}, "the configuration is 4; give a text"),
        ({"processor": object(), "spec": 16}, "processor, spec is not for BertForSequenceClassification"),
        ({"method": "distill"}, "distill reads batches of your own, and none were given: give batches="),
        ({"method": "gptq", "batches": 4}, "batches is 4; give an iterable of dicts of tensors"),
        ({"method": "gptq-real"}, "gptq-real reads real data, and none were given: give real="),
        ({"method": "gptq", "tokenizer": None}, "needs its tokenizer, and none was given"),
        ({"method": "gptq", "generator": 3}, "generator is a int; give a path, an id or"),
        ({"teacher_bits": 5}, "teacher_bits is 5; give 8 or 4"),
        ({"method": "llm-qat", "teacher_bits": 8}, "give its path or id, saved as it is now"),
        ({"baselines": ("magic",)}, "method is 'magic'"),
        ({"baselines": "rtn"}, "baselines is 'rtn'; give a list of names"),
        ({"method": lambda *_: 1, "baselines": [lambda *_: 2]}, "is called 'own' in the table, and so is another"),
        ({"method": "rtn", "baselines": [lambda *_: 1, lambda *_: 2]}, "is called 'own' in the table"),
        (
            {"method": "distill", "baselines": [lambda *_: 1], "batches": iter([{}])},
            "in which each of 2 runs would go on",
        ),
        ({"method": "rtn", "batches": [{}]}, "batches are read by method='distill' alone, not by rtn"),
        ({"method": "gptq", "batches": [{}]}, "batches are read by method='distill' alone, not by gptq"),
        ({"method": "gptq-real", "real": ["a"]}, "real is a list; give a function"),
        ({"method": "rtn", "zero_shot": False}, "rtn says itself what it reads"),
        ({"method": "rtn", "score": 3}, "score is 3; give a function of a model"),
        ({"method": "rtn", "score": lambda _: None}, "the score answers None as 'score', not a number by its name"),
        ({"method": "rtn", "score": lambda _: {"f1": "high"}}, "answers 'high' as 'f1', not a number by its name"),
        ({"method": "rtn", "score": lambda _: {1: 0.5}}, "answers 0.5 as 1, not a number by its name .its name"),
        ({"method": "rtn", "data": "sst2"}, "data is a zsaq.run.Data"),
        ({"method": "rtn", "tokenizer": "x"}, "tokenizer is 'x', which cannot be saved beside the student"),
        ({"method": "rtn", "seed": 1.5}, "seed is 1.5; give an integer of at least 0"),
        ({"method": "rtn", "seed": -1}, "seed is -1; give an integer of at least 0"),
        ({"method": "rtn", "text_pair": "no"}, "text_pair is 'no'; give True or False"),
        ({"method": "zsaq", "warm": 1.5}, "warm is 1.5; give an integer of at least 0"),
        ({"method": "llm-qat", "lr": -1.0}, "lr is -1.0; give a finite number of at least 0"),
        ({"method": "llm-qat", "hidden": -1}, "hidden is -1; give a finite number of at least 0"),
        ({"method": lambda *_: None}, "answered a NoneType; it is to answer the student"),
    ],
)
def test_of_text(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        text(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "gptq"}, "method is 'gptq'; for ResNetForImageClassification give one of rtn-noise"),
        ({"method": "psaq"}, "does not suit psaq, which needs a vision transformer; take one of rtn-noise"),
        ({"method": "genie", "image_stesp": 3}, "genie has no option image_stesp; its options are images=256"),
        ({"preset": "magic"}, "preset is 'magic'; give brecq, psaq or uniform"),
        ({"preset": "brecq", "config": QuantConfig.parse("w8a8")}, "leave it off, or give text"),
        ({"config": "w4a8g16"}, "is no text of a preset"),
        ({"tokenizer": bpe(), "text_pair": True}, "tokenizer, text_pair is not for ResNetForImageClassification"),
        ({"generator": "x", "teacher_bits": 8}, "generator, teacher_bits is not for ResNetForImageClassification"),
        ({"method": "distill"}, "distill reads batches of your own, and none were given: give batches="),
        ({"method": "onepass-blocks", "mixes": 0}, r"mixes is 0; .* give at least 1, or leave it off for three$"),
        ({"method": "rtn-real"}, "rtn-real reads real data, and none were given: give real="),
        ({"spec": None}, r"names no image size; give spec=SIDE \(--size\)"),
        ({"spec": (4, 16, 3)}, r"spec is \(4, 16, 3\); give the side of the images in pixels, or ImageSpec\("),
        ({"processor": "x"}, "processor is 'x', which cannot be saved beside the student .* or leave it off$"),
        ({"processor": object()}, "processor is a object, which cannot be saved beside the student"),
        (
            {"method": "onepass-real", "images": 9, "real": lambda: torch.zeros(0, 3, 16, 16)},
            r"real\(\) answers no image, and 9 are asked for: give some$",
        ),
        *(
            (
                {"method": "rtn-real", "real": lambda answer=answer: answer},
                rf"real\(\) answers {words}; make it answer",
            )
            for answer, words in (
                ({"pixel_values": torch.zeros(9, 3, 16, 16)}, "a dict"),
                (torch.zeros(9, 3, 32, 32), r"torch.float32 \[9, 3, 32, 32\]"),
                (torch.zeros(9, 3, 16, 16, dtype=torch.uint8), r"torch.uint8 \[9, 3, 16, 16\]"),
            )
        ),
    ],
)
def test_of_images(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        image(**options)


def test_a_method_that_does_not_suit_the_model_is_refused_with_those_that_do() -> None:
    config = BertConfig(vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    tagger = BertForTokenClassification(config).eval()
    with pytest.raises(ValueError, match=r"BertForTokenClassification is none; for it give one of rtn-minmax, rtn$"):
        zsaq.quantize(tagger, "w4a8", method="gptq")
    assert zsaq.quantize(tagger, "w4a8").zsaq.results.method == "rtn"
    for teacher, method in ((vit(), "genie"), (convnext(), "zeroq")):
        with pytest.raises(ValueError, match=f"does not suit {method}, which needs BatchNorm"):
            zsaq.quantize(teacher, "w4a4", method=method)


def test_a_teacher_in_few_bits_says_what_it_needs(tmp_path: Path) -> None:
    for part in (opt(bpe()), bpe()):
        part.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="needs bitsandbytes"):
        zsaq.quantize(tmp_path, "w4a8", method="llm-qat", teacher_bits=8)
    loaded = type(opt(bpe())).from_pretrained(tmp_path)  # whose weights may be others by now
    with pytest.raises(ValueError, match="give its path or id, saved as it is now"):
        zsaq.quantize(loaded, "w4a8", method="llm-qat", tokenizer=bpe(), teacher_bits=8)
    assert zsaq.quantize(tmp_path, "w8a8", teacher_bits=4).zsaq.results.method == "rtn", "nobody asks its teacher"


@pytest.mark.parametrize("model", ["/nowhere", "../x", "tests"])
def test_what_is_no_model(model: str) -> None:
    with pytest.raises(ValueError, match=r"is no folder|cannot be quantized"):
        zsaq.quantize(model, "w4a8")


def test_an_id_offline_is_not_reached() -> None:
    with pytest.raises((ConnectionError, ValueError), match="nobody/nothing"):
        zsaq.quantize("nobody/nothing", "w4a8")


def test_a_teacher_that_lacks_its_head_is_refused(tmp_path: Path) -> None:
    model = bert(wordpiece())
    model.bert.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"BertModel"', '"BertForSequenceClassification"'))
    with pytest.raises(ValueError, match=r"has no weights for \['classifier"):
        zsaq.quantize(tmp_path, "w4a8")


def test_a_student_is_no_teacher(tmp_path: Path) -> None:
    zsaq.quantize(bert(wordpiece()), "w4a8", method="rtn").save_pretrained(tmp_path / "student")
    with pytest.raises(ValueError, match="quantized already"):
        zsaq.quantize(tmp_path / "student", "w4a8")


def test_a_plain_module_is_no_text() -> None:
    with pytest.raises(ValueError, match="tokenizer is not for Cnn"):
        zsaq.quantize(cnn(), "w4a8", tokenizer=bpe())


def test_a_model_that_does_not_work_is_refused_before_anything_is_spent() -> None:
    teacher = opt(bpe())
    student = zsaq.quantize(teacher, "w4a8", method="rtn")
    with pytest.raises(ValueError, match="quantized already; give the float model"):
        zsaq.quantize(student, "w4a8", tokenizer=bpe())
    with torch.no_grad():
        teacher.get_parameter("model.decoder.layers.0.fc1.weight")[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"weights that are not finite \(model.decoder.layers.0.fc1.weight\)"):
        zsaq.quantize(teacher, "w4a8", method="rtn")
    with pytest.raises(ValueError, match="model is a NoneType; give a path"):
        zsaq.quantize(None, "w4a8")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"size.* 0"):
        zsaq.quantize(resnet(), "w4a4", spec=0)

    def rtn(*_: Any) -> None: ...

    with pytest.raises(ValueError, match="your method is called rtn, which is another's name"):
        text(method=rtn, baselines=["rtn"])


def test_what_a_method_does_not_read_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    text(method="rtn", generator="no/such", text_pair=True, real=lambda: ["never read"])
    assert "generator, real, text_pair: not read by rtn" in capfd.readouterr().err


def test_a_generator_without_the_head_that_writes_is_refused(tmp_path: Path) -> None:
    bert(wordpiece()).save_pretrained(tmp_path)
    wordpiece().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"cannot be loaded \(it has no weights for .*; give generator="):
        text(method="gptq", generator=str(tmp_path), calibration=1)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        *(({"baselines": value}, "baselines is") for value in (0, 1.5, True, None, {"rtn"}, [[]], [3])),
        *(({"method": value}, "method is") for value in ([], {}, [None], 3)),
        *(({"method": "llm-qat", "lr": value}, "lr is 0") for value in (0, 0.0)),
        *(({"generator": value}, "neither a folder here nor an id") for value in ("", "/no/such", "no/such/one", "\0")),
        *(({"license": value}, "license of") for value in ("../../etc/passwd", "a\\b", "a\nb")),
        *(({"config": value}, "is") for value in ("w04a8", "w4a08", "w2a8g016", "w2a8e04", "w0a8")),
    ],
)
def test_values_that_cannot_be_are_refused_by_name(given: dict[str, Any], words: str) -> None:
    options: dict[str, Any] = {"config": "w4a8", "method": "rtn", "tokenizer": wordpiece()} | given
    with pytest.raises(ValueError, match=words):
        zsaq.quantize(bert(wordpiece()), **options)
