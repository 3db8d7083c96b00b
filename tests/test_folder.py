"""What a folder asks of a loader: nothing but its own files and code, and no more than its weights hold."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from students import CONFIGS, bits, one_thread, student_of
from zsaq.eval.pretrained import load_model
from zsaq.io.checksums import MANIFEST, check_manifest
from zsaq.io.folder import INDEX, WEIGHTS
from zsaq.io.loading import load
from zsaq.io.saving import save
from zsaq.io.teacher import load_teacher

__all__ = ["one_thread"]

Json = dict[str, Any]
FAMILIES = ("bert", "llama", "gpt2")


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("students")
    for family in FAMILIES:
        save(student_of(family, CONFIGS["w2a8"]), folder / family)
    return folder


def unsealed(students: Path, family: str, folder: Path) -> Path:
    shutil.copytree(students / family, folder / family, ignore=shutil.ignore_patterns(MANIFEST))
    return folder / family


def changed(folder: Path, changes: Json) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


FLASH = {"attn_implementation": "flash_attention_2"}
ASKING: dict[str, tuple[str, Json, str]] = {
    "layers": ("bert", {"num_hidden_layers": 10_000}, r"more than [\d,]+ (modules|parameters), and its weights are"),
    "layers of GPT-2": ("gpt2", {"n_layer": 10_000}, r"more than [\d,]+ (modules|parameters), and its weights are"),
    "layers of Llama": ("llama", {"num_hidden_layers": 60_000}, "num_hidden_layers|more than"),
    "a list of layers": ("llama", {"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
    "endless layers": ("bert", {"num_hidden_layers": 10**400}, "num_hidden_layers is 1000"),
    "fewer than none": ("bert", {"num_hidden_layers": -(10**9)}, "num_hidden_layers is -1000000000"),
    "labels": ("llama", {"num_labels": 10**9}, "num_labels is 1000000000"),
    "a vocabulary": ("bert", {"vocab_size": 10**9}, "its plan asks for"),
    "a width": ("bert", {"hidden_size": 10**9}, "its plan asks for|no model can be made"),
    "a negative width": ("llama", {"intermediate_size": -5}, "no model can be made"),
    "a width that is no integer": ("bert", {"hidden_size": 1.5}, "expected int"),
    "positions": ("bert", {"max_position_embeddings": 10**9}, r"position_embeddings\.weight is"),
    "masks": ("gpt2", {"n_positions": 200_000}, r"wpe\.weight is"),
    "cross-attention": ("bert", {"is_decoder": True, "add_cross_attention": True}, "crossattention.*drawn at random"),
    "a nested config of code": (
        "bert",
        {"text_config": {"auto_map": {"AutoModel": "x.Y"}}},
        "has auto_map, which runs",
    ),
    "code in a list": ("bert", {"parts": [{"custom_pipelines": {"a": 1}}]}, "has custom_pipelines"),
    "a kernel of the Hub": ("bert", {"attn_implementation": "kernels-community/flash"}, "attn_implementation is 'kern"),
    "a kernel by part": ("llama", {"attn_implementation": {"": "me/kernel"}}, "attn_implementation is 'me/kernel'"),
    "a kernel under its other name": ("bert", {"_attn_implementation": "a/b"}, "_attn_implementation is 'a/b'"),
    "a kernel that is not installed": ("bert", FLASH, "'flash_attention_2', which is code of another package"),
    "a kernel of experts": ("llama", {"experts_implementation": "a/b"}, "experts_implementation is 'a/b'"),
    "nan under a root": ("llama", {"rms_norm_eps": math.nan}, "rms_norm_eps is nan, which is no number"),
    "nan as transformers writes it": ("llama", {"rms_norm_eps": {"__float__": "NaN"}}, "rms_norm_eps is NaN"),
    "an infinite factor": ("llama", {"rope_parameters": {"factor": math.inf}}, "factor is inf"),
    "a root of a negative": ("bert", {"layer_norm_eps": -1.0}, "layer_norm_eps is -1.0"),
    "frequencies of zero": (
        "llama",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 0.0}},
        r"inv_freq.*not finite",
    ),
    "a dtype of nobody": ("bert", {"dtype": "evil"}, "is no folder or Hub id of a saved student"),
    "padding beyond the table": ("bert", {"pad_token_id": 10**6}, "no model can be made"),
}


@pytest.mark.parametrize("what", ASKING)
def test_a_config_that_asks_for_more_than_there_is_is_refused_at_once(
    what: str, students: Path, tmp_path: Path
) -> None:
    family, changes, message = ASKING[what]
    with pytest.raises(ValueError, match=message):
        load(changed(unsealed(students, family, tmp_path), changes))


DEEP_OR_FOREIGN = (
    *('{"a":' * 100_000, '{"a":' * 100 + "1" + "}" * 100, "[" * 100_000),
    *("[]", "7", "", "{", '{"a": \xff', "1" * 5000),
)


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", INDEX, MANIFEST, "results.json", "parity.json", "export.json"]
)
def test_deep_and_foreign_json_is_refused_or_told(name: str, students: Path, tmp_path: Path) -> None:
    for text in DEEP_OR_FOREIGN:
        folder = unsealed(students, "llama", tmp_path / str(len(list(tmp_path.iterdir()))))
        if name == INDEX:
            (folder / WEIGHTS).unlink()
        (folder / name).write_text(text, encoding="latin-1")
        if name in ("results.json", "parity.json", "export.json"):  # no part of the model: it is a problem, or unread
            record = vars(load(folder))["zsaq"]
            assert (record.problem is not None) == (name == "results.json")
        else:
            with pytest.raises(ValueError, match=name.replace(".", r"\.")):
                load(folder)


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "tokenizer.json", "generation_config.json"])
def test_a_link_that_leads_out_is_refused_with_and_without_a_manifest(
    name: str, students: Path, tmp_path: Path
) -> None:
    folder = unsealed(students, "llama", tmp_path)
    (tmp_path / "other").write_bytes((folder / name).read_bytes() if (folder / name).exists() else b"{}")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(tmp_path / "other")
    for _ in range(2):
        with pytest.raises(ValueError, match="is a link that leads out of the folder; put a copy"):
            load(folder)
        shutil.copy(students / "llama" / MANIFEST, folder)


def flipped(folder: Path) -> Path:
    with (folder / WEIGHTS).open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    return folder


def test_whoever_scores_a_student_reads_what_the_manifest_says(students: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    folder = Path(shutil.copytree(students / "bert", tmp_path / "m"))
    check_manifest(folder)
    assert torch.equal(bits(load_model(str(folder), AutoModelForSequenceClassification)), bits(load(folder)))
    with pytest.raises(ValueError, match=r"model\.safetensors has the sha256"):
        load_model(str(flipped(folder)), AutoModelForSequenceClassification)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 10_000}, "more than .* and its weights are"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ({"num_labels": 10**9}, "num_labels is 1000000000"),
        ({"attn_implementation": "flash_attention_2"}, "attn_implementation is 'flash_attention_2'"),
    ],
)
def test_a_teacher_that_asks_for_more_is_refused_too(changes: Json, message: str, tmp_path: Path) -> None:
    from students import TEACHERS

    TEACHERS["bert"]().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_teacher(changed(tmp_path, changes))


def test_a_plan_of_more_modules_than_tensors_is_refused(students: Path, tmp_path: Path) -> None:
    folder = unsealed(students, "bert", tmp_path)
    plan = json.loads((folder / "config.json").read_text())["quantization_config"]
    plan["modules"] += [f"x{n}" for n in range(100_000)]
    with pytest.raises(ValueError, match=r"its plan names 100,0\d\d modules, its weights are"):
        load(changed(folder, {"quantization_config": plan}))


def test_tensors_that_a_file_repeats_do_not_bound_a_model_from_above(students: Path, tmp_path: Path) -> None:
    """Spare tensors are refused, however many layers they would allow."""
    folder = unsealed(students, "bert", tmp_path)
    state = load_file(folder / WEIGHTS) | {f"spare.{n}": torch.zeros(1) for n in range(2000)}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="belong to no layer"):
        load(folder)
