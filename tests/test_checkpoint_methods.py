"""Every method, stopped in every kind of its stages, ends as if it had not been stopped."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from interrupted import goes_on
from language_toys import REAL, bert, bpe, opt, wordpiece
from vision_toys import CLASSES, images, resnet, vit
from zsaq.language.methods import METHODS as LANGUAGE
from zsaq.train.checkpoint import Checkpoint
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.methods import METHODS as VISION

FEW_TEXT = {"steps": 3, "warm": 1, "calibration": 2, "ratio": (1, 1), "rho": 0.16, "sam_share": 0.5}
FEW_IMAGES = {
    "images": 4, "image_steps": 2, "warmup": 2, "calibration": 2, "steps": 2, "batch_size": 4, "centre_steps": 2,
    "tuning_steps": 2, "tuning_batch_size": 4, "warm_steps": 1, "sharpening": 2,
}  # fmt: skip
QUICK = {
    "zsaq",
    "zsaq-paper",
    "gptq-qat",
    "gdfq",
    "synq",
    "genie",
    "onepass-kl",
    "onepass-blocks",
    "onepass-blocks-kl",
}  # every kind of stage


BATCHES = [{"input_ids": torch.full((2, 5), word), "attention_mask": torch.ones(2, 5)} for word in (9, 11)]


def rows(names: Iterable[str]) -> list[Any]:
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names]


def text_run(name: str, config: str = "w2a8") -> Mapping[str, Any]:
    method = LANGUAGE[name]
    options = {key: value for key, value in FEW_TEXT.items() if key in method.options()}
    given = {"batches": BATCHES} if name == "distill" else {}
    given |= {"real": lambda: REAL} if name.endswith("-real") else {}
    return {
        "model": bert(wordpiece()), "config": config, "method": name, "tokenizer": wordpiece(), "seed": 3,
        "generator": (opt(bpe()), bpe()), **given, **options,
    }  # fmt: skip


def image_run(name: str) -> Mapping[str, Any]:
    method = VISION[name]
    teacher, size = (vit(), 16) if method.needs.startswith("a vision transformer") else (resnet(), 32)
    given: dict[str, Any] = {key: value for key, value in FEW_IMAGES.items() if key in method.options()}
    if name.endswith("-real"):
        given["real"] = lambda: images(6, size, seed=6)
    if name == "distill":
        given["batches"] = [{"pixel_values": images(3, 32, seed=seed)} for seed in range(3)]
    return {"model": teacher, "config": "w4a4", "method": name, "spec": ImageSpec(CLASSES, size), "seed": 3, **given}


@pytest.mark.parametrize("name", rows(name for name, method in LANGUAGE.items() if method.budgets))
def test_a_language_run_goes_on(name: str, tmp_path: Path) -> None:
    taken = goes_on(lambda: text_run(name), tmp_path, lambda count: {1, count // 2, count} - {0})
    assert len(taken) >= 2


@pytest.mark.parametrize("given", [{"prompts": ["it", "a film"]}, {"corpus": REAL}])
def test_a_run_on_asked_or_given_text_goes_on(given: dict[str, Any], tmp_path: Path) -> None:
    goes_on(lambda: {**text_run("gptq-qat"), **given}, tmp_path, lambda count: {1, count})


@pytest.mark.parametrize("name", rows(VISION))
def test_a_vision_run_goes_on(name: str, tmp_path: Path) -> None:
    taken = goes_on(lambda: image_run(name), tmp_path, lambda count: set(range(1, count + 1, max(1, count // 2))))
    assert taken or name.startswith("rtn")
    assert not Checkpoint.running
