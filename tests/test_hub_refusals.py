"""Every damage to a saved student is refused: each function below spoils one thing, and the error names the layer."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForMaskedLM, AutoModelForMultipleChoice, AutoModelForSequenceClassification

from students import bits, student_of
from zsaq.io.loading import load
from zsaq.quant.config import Grid, QuantConfig

LAYER = "bert.encoder.layer.1.output.dense"
Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    asymmetric = QuantConfig(Grid(3, symmetric=False), Grid(8, per="tensor"))
    rules = ((LAYER, asymmetric), ("bert.pooler.dense", QuantConfig(Grid(2, levels="ternary"))))
    student_of("bert", QuantConfig(Grid(2, levels="half"), embedding=Grid(8), rules=rules)).save_pretrained(folder)
    return folder


def put(key: str, value: Callable[[Tensor], Tensor]) -> Callable[[Tensors], None]:
    def spoil(tensors: Tensors) -> None:
        tensors[key] = value(tensors[key]).contiguous()

    return spoil


def fill(number: float) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.full_like(x, number)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t.pop(f"{LAYER}.codes"), rf"{LAYER}: the tensor {LAYER}\.codes is missing"),
        (lambda t: t.pop(f"{LAYER}.scale"), rf"{LAYER}: .*scale is missing"),
        (lambda t: t.pop(f"{LAYER}.zero"), rf"{LAYER}: .*zero is missing"),
        (lambda t: t.pop(f"{LAYER}.input_quantizer.ranges.scale"), rf"{LAYER}: .*ranges\.scale is missing"),
        (lambda t: t.pop("classifier.bias"), r"classifier\.bias.*drawn at random"),
        (lambda t: t.pop("bert.encoder.layer.0.output.LayerNorm.weight"), r"LayerNorm\.weight.*drawn at random"),
        (lambda t: t.update({f"{LAYER}.weight": torch.zeros(32, 48)}), rf"{LAYER}: its plan knows no tensors"),
        (lambda t: t.update({"classifier.scale": torch.ones(2, 1)}), r"classifier\.scale.*belong to no layer"),
        (lambda t: t.update({"stranger": torch.ones(1)}), r"stranger.*belong to no layer"),
        (put(f"{LAYER}.codes", lambda x: x[:, 1:]), rf"{LAYER}: .*codes is .*\(32, 17\).*\(32, 18\)"),
        (put(f"{LAYER}.scale", lambda x: x[:, 0]), rf"{LAYER}: .*scale is \(\'F32\', \(32,\)\)"),
        (put(f"{LAYER}.bias", lambda x: x[:3]), rf"{LAYER}: {LAYER}\.bias is \(.F32., \(3,\)\)"),
        (put("classifier.weight", lambda x: x[:, :3]), r"classifier: classifier\.weight is \(.F32., \(2, 3\)\)"),
        (put(f"{LAYER}.codes", lambda x: x.view(torch.int8)), rf"{LAYER}: .*codes is \('I8'.*asks for \('U8'"),
        (put(f"{LAYER}.scale", torch.Tensor.half), rf"{LAYER}: .*scale is \('F16'.*asks for \('F32'"),
        (
            put(f"{LAYER}.input_quantizer.ranges.zero", torch.Tensor.half),
            rf"{LAYER}: .*zero is \('F16'.*asks for \('F32'",
        ),
        (put("classifier.weight", torch.Tensor.long), r"classifier: classifier\.weight is \(.I64."),
        (put(f"{LAYER}.bias", torch.Tensor.long), rf"{LAYER}: .*bias is \(.I64."),
        (put(f"{LAYER}.scale", fill(math.nan)), rf"{LAYER}: scale is not finite and positive"),
        (put(f"{LAYER}.scale", fill(math.inf)), rf"{LAYER}: scale is not finite and positive"),
        (put(f"{LAYER}.scale", fill(0.0)), rf"{LAYER}: scale is not finite and positive"),
        (put(f"{LAYER}.scale", torch.Tensor.neg), rf"{LAYER}: scale is not finite and positive"),
        (put(f"{LAYER}.zero", fill(8)), rf"{LAYER}: a zero is 8, the grid ends at 7"),
        (put("bert.pooler.dense.codes", fill(255)), r"bert\.pooler\.dense: a code is 3, the grid ends at 2"),
        (put(f"{LAYER}.input_quantizer.ranges.scale", fill(0)), rf"{LAYER}: the static range has seen nothing"),
        (put(f"{LAYER}.input_quantizer.ranges.scale", fill(-1)), rf"{LAYER}: the static range has scale -1"),
        (put(f"{LAYER}.input_quantizer.ranges.scale", fill(9e-9)), rf"{LAYER}: the static range has .* not empty"),
        (put(f"{LAYER}.input_quantizer.ranges.scale", fill(math.inf)), rf"{LAYER}: the static range has scale inf"),
        (put(f"{LAYER}.input_quantizer.ranges.scale", fill(math.nan)), rf"{LAYER}: the static range has scale nan"),
        (put(f"{LAYER}.input_quantizer.ranges.zero", fill(math.nan)), rf"{LAYER}: the static range has .* zero nan"),
        (put(f"{LAYER}.input_quantizer.ranges.zero", fill(1)), rf"{LAYER}: .* a zero from 0.0 to 0.0"),
    ],
)
def test_damaged_tensors_are_refused(
    saved: Path, tmp_path: Path, spoil: Callable[[Tensors], Any], message: str
) -> None:
    tensors = load_file(saved / "model.safetensors")
    spoil(tensors)
    shutil.copy(saved / "config.json", tmp_path)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


Json = dict[str, Any]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c: c.pop("quantization_config"), "no quantization_config"),
        (lambda c: c.update(quantization_config=7), "zsaq reads quant_method 'zsaq'"),
        (lambda c: c["quantization_config"].update(quant_method="gptq"), "zsaq reads quant_method 'zsaq'"),
        (lambda c: c["quantization_config"].pop("quant_method"), "zsaq reads quant_method 'zsaq'"),
        (lambda c: c["quantization_config"].update(format_version=2), "format_version is 2, this zsaq reads 1"),
        (lambda c: c["quantization_config"].update(format_version=True), "format_version is True"),
        (lambda c: c["quantization_config"].pop("format_version"), "format_version is None"),
        (lambda c: c["quantization_config"].update(stranger=1), "stranger"),
        (lambda c: c["quantization_config"].pop("tied"), "a plan has the keys"),
        (lambda c: c["quantization_config"]["config"].update(stranger=1), r"unknown keys \['stranger'\]"),
        (lambda c: c["quantization_config"]["config"]["weight"].update(bits=9), "bits is 9"),
        (lambda c: c["quantization_config"]["config"]["weight"].update(bits="2"), "bits is '2'"),
        (lambda c: c["quantization_config"]["config"]["weight"].update(per=-1), "per is -1"),
        (lambda c: c["quantization_config"]["config"]["weight"].update(per=7), r"bert\..*: the group size 7 does not"),
        (
            lambda c: c["quantization_config"]["config"]["weight"].update(levels="integer", bits=4),
            "codes is .*its plan asks for",
        ),
        (lambda c: c["quantization_config"]["config"].update(rules=[["*", None]]), "a rule leaves it alone"),
        (lambda c: c["quantization_config"]["config"].update(weight=None), "no grid for it"),
        (lambda c: c["quantization_config"].update(modules=[]), "names nothing"),
        (lambda c: c["quantization_config"].update(modules="all"), "give a list of module names"),
        (lambda c: c["quantization_config"].update(modules=[["a"]]), "give a list of module names"),
        (lambda c: c["quantization_config"]["modules"].append(LAYER), "one module twice"),
        (lambda c: c["quantization_config"]["modules"].append("no.such"), r"no\.such: .* has nothing of that name"),
        (lambda c: c["quantization_config"]["modules"].append("bert.encoder"), r"bert\.encoder: .* has BertEncoder"),
        (lambda c: c["quantization_config"]["modules"].append("classifier"), "classifier: the tensor .* is missing"),
        (
            lambda c: c["quantization_config"]["modules"].remove(LAYER),
            rf"{LAYER}: .*weight is \('U8', \(1,\)\), the model asks",
        ),
        (lambda c: c["quantization_config"].update(tied={LAYER: "x"}), "both ends must be in modules"),
        (lambda c: c["quantization_config"].update(tied={LAYER: LAYER}), "both ends must be in modules"),
        (lambda c: c["quantization_config"].update(tied={LAYER: "bert.pooler.dense"}), rf"{LAYER}: .*no table|no grid"),
        (lambda c: c["quantization_config"].update(tied=[1]), "tied is"),
        (lambda c: c["quantization_config"].update(left={"a": 1}), "left is"),
        (lambda c: c.update(architectures=None), "architectures is None"),
        (lambda c: c.update(architectures=["os.system"]), "give auto_class"),
        (lambda c: c.update(architectures=["GPT2LMHeadModel"]), "give auto_class"),
        (lambda c: c.update(hidden_size=64), "its plan asks for"),
        (lambda c: c.update(hidden_size="big"), "no folder or Hub id of a saved student"),
        (lambda c: c.update(model_type="stranger"), "stranger"),
        (lambda c: c.update(num_hidden_layers=3), "drawn at random"),
        (lambda c: c.update(num_hidden_layers=1), r"layer\.1.* has nothing of that name"),
        (lambda c: c.update(vocab_size=300), "its plan asks for"),
    ],
)
def test_hostile_configs_are_refused(saved: Path, tmp_path: Path, spoil: Callable[[Json], Any], message: str) -> None:
    config = json.loads((saved / "config.json").read_text())
    spoil(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copy(saved / "model.safetensors", tmp_path)
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def test_damaged_and_missing_files_are_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no folder or Hub id of a saved student"):
        load(tmp_path)
    shutil.copy(saved / "config.json", tmp_path)
    with pytest.raises(ValueError, match=r"no readable model\.safetensors"):
        load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged"):
        load(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"junk")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no readable model\.safetensors"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="no folder or Hub id of a saved student"):
        load(tmp_path)


def test_another_head_is_refused_by_load_and_shards_are_read(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"bert\.pooler\.dense: BertForMaskedLM has nothing of that name"):
        load(saved, AutoModelForMaskedLM)
    with pytest.raises(ValueError, match=r"classifier: .* is .* asks for"):
        load(saved, AutoModelForMultipleChoice)
    loaded = load(saved, AutoModelForSequenceClassification)
    loaded.save_pretrained(tmp_path, max_shard_size="5KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert torch.equal(bits(load(str(tmp_path))), bits(loaded))
