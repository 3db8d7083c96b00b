"""The compressed-tensors export in a process that has never seen this package: same codes, weights and logits."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import ResNetConfig, ResNetForImageClassification

from reference_compressed import StockInputs, pack_words
from students import IDS, TABLES, student_of
from zsaq.deploy.compressed import write as compressed
from zsaq.deploy.compressed.layout import to_int32
from zsaq.deploy.compressed.write import to_compressed
from zsaq.io.loading import load
from zsaq.quant.config import Grid, QuantConfig
from zsaq.quant.model import quantize_model
from zsaq.quant.packed import PackedEmbedding, packed_layers
from zsaq.quant.packing import unpack
from zsaq.quant.ranges import MinMax

TOKEN8 = Grid(8, per="token")
TABLE = QuantConfig(Grid(4), TOKEN8, embedding=Grid(6))
OTHERS = {
    "exact": QuantConfig(  # inputs whose rule is the same on both sides
        Grid(4, symmetric=False, per=8),
        Grid(8, symmetric=False, per="token"),
        embedding=Grid(3),
        rules=(("*.layer.1.*", QuantConfig(Grid(6, per="tensor"), Grid(8, per="tensor"))),),
    ),
    "mixed": QuantConfig(
        Grid(2, levels="half"),
        TOKEN8,
        rules=(("*.layer.1.attention.*", QuantConfig(Grid(5))), ("*.layer.1.*", QuantConfig(Grid(7), Grid(4, per=8)))),
    ),
    "tied": QuantConfig(Grid(4), TOKEN8, rules=((TABLES["opt"], TABLE),)),
}
TEXTS = ["w2a8", "w2a8-ternary", "w2a8-integer", "w3a8", "w4a8", "w4a8g16", "w8a8", "w4a16"]
CASES = [
    *(f"bert {name}" for name in [*TEXTS, "exact", "mixed"]),
    *(f"llama {name}" for name in ["w2a8", "w4a8g16"]),
    *(f"opt {name}" for name in ["w8a8", "tied"]),
]
STORED = {"w2a8": {4}, "w2a8-ternary": {2}, "w2a8-integer": {2}, "w3a8": {3}, "exact": {5, 6}, "mixed": {4, 5, 7}}
STOCK = """
import json, sys
from pathlib import Path
import torch
from compressed_tensors.config import CompressionFormat
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
torch.set_num_threads(1)
ids, result, facts = torch.tensor(json.loads(sys.argv[2])), {}, {}
for folder in sorted(Path(sys.argv[1]).glob("*/stock")):
    name = folder.parent.name
    auto = AutoModelForSequenceClassification if name.startswith("bert") else AutoModelForCausalLM
    model, info = auto.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    schemes = {n: m.quantization_scheme for n, m in model.named_modules() if "quantization_scheme" in vars(m)}
    facts[name] = {n: CompressionFormat(s.format).value for n, s in schemes.items()}
    with torch.no_grad():
        result[f"{name}/logits"], result[f"{name}/alone"] = model(ids).logits, model(ids[:1]).logits
    for n, p in model.named_parameters():
        result[f"{name}/{n}"] = p.detach().clone()
assert not any(m.split(".")[0] == "zsaq" for m in sys.modules)
save_file(result, Path(sys.argv[1]) / "result.safetensors")
print(json.dumps(facts))
"""


def config_of(name: str) -> QuantConfig:
    return OTHERS.get(name) or QuantConfig.parse(name)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The folder of all cases, our facts, the stock modules with their formats, and what the stock models gave."""
    torch.manual_seed(0)
    root, facts = tmp_path_factory.mktemp("exported"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # starting threads takes longer than reading these small files
        for case in CASES:
            family, name = case.split()
            student_of(family, config_of(name)).save_pretrained(root / case / "ours")
            facts[case] = to_compressed(root / case / "ours", root / case / "stock")
        command = [sys.executable, "-c", STOCK, str(root), json.dumps(IDS.tolist())]
        done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr[-2000:]
    return root, facts, json.loads(done.stdout.splitlines()[-1]), load_file(root / "result.safetensors")


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("case", CASES)
def test_stock_transformers_reads_the_same_weights_and_logits(case: str, exported: Any) -> None:
    root, facts, modules, result = exported
    ours = load(root / case / "ours")
    linear = {n: layer for n, layer in packed_layers(ours) if not isinstance(layer, PackedEmbedding)}
    tables = {n for n, layer in packed_layers(ours) if isinstance(layer, PackedEmbedding) and case.startswith("bert")}
    assert set(modules[case]) == {*linear, *tables} and facts[case]["layers"] == len(linear) > 0
    assert facts[case]["tables"] == len(tables)
    assert set(facts[case]["bits"]) == STORED.get(case.split()[1], set(facts[case]["bits"]))
    for name, layer in packed_layers(ours):
        assert torch.equal(result[f"{case}/{name}.weight"], layer.weight), name
    with torch.no_grad():
        theirs, logits = result[f"{case}/logits"], ours(IDS).logits
        # The same rule: to rounding. Our rule: a rounding step of the inputs away, and told.
        rounds = any("dynamic symmetric" in change for change in facts[case]["changed"])
        assert distance(theirs, logits) <= (0.15 if case == "bert mixed" else 0.05 if rounds else 1e-5)
        for layer in linear.values():
            if layer.input_quantizer is not None and isinstance(layer.input_quantizer.ranges, MinMax) and rounds:
                grid = layer.input_quantizer.grid
                layer.input_quantizer = StockInputs(grid.bits, grid.per if isinstance(grid.per, int) else None)  # type: ignore[assignment]
        assert distance(theirs, ours(IDS).logits) <= 1e-5
    assert distance(result[f"{case}/alone"], theirs[:1]) <= 1e-5, "an answer depends on its neighbours in the batch"


@pytest.mark.parametrize("case", CASES)
def test_the_integers_in_the_file_are_the_codes(case: str, exported: Any) -> None:
    root, facts, modules, _ = exported
    ours, tensors = load(root / case / "ours"), load_file(root / case / "stock" / "model.safetensors")
    for name, layer in packed_layers(ours):
        if name not in modules[case]:
            continue
        owner = layer.table or layer
        codes = unpack(owner.codes, owner.grid.bits, owner.shape).short() + owner.grid.low
        if not owner.grid.symmetric:
            codes -= owner.zero.expand(*owner.zero.shape[:-1], codes.shape[1] // owner.zero[0].numel()).reshape(
                codes.shape
            )
        codes = 2 * codes + 1 if owner.grid.levels == "half" else codes
        if modules[case][name] == "int-quantized":
            assert torch.equal(tensors[f"{name}.weight"].short(), codes)
        else:
            bits = 4 if owner.grid.levels == "half" else owner.grid.bits + (not owner.grid.symmetric)
            assert tensors[f"{name}.weight_packed"].tolist() == [pack_words(row, bits) for row in codes.tolist()]
    saved = json.loads((root / case / "stock" / "config.json").read_text())["quantization_config"]
    heads = {"bert": ["classifier"], "llama": ["lm_head"], "opt": ["lm_head"]}[case.split()[0]]
    assert saved["ignore"] == facts[case]["ignored"] == ([] if case == "opt tied" else heads)
    assert saved["quant_method"] == "compressed-tensors"


@given(st.integers(2, 8), st.integers(1, 40), st.randoms())
def test_words_agree_with_the_reference_and_the_package(bits: int, count: int, random: Any) -> None:
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    codes = [[random.randrange(-(2 ** (bits - 1)), 2 ** (bits - 1)) for _ in range(count)] for _ in range(2)]
    words = to_int32(torch.tensor(codes), bits)
    assert words.tolist() == [pack_words(row, bits) for row in codes]
    assert torch.equal(words, pack_to_int32(torch.tensor(codes, dtype=torch.int8), bits))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "bert"
    student_of("bert", QuantConfig.parse("w4a8")).save_pretrained(folder)
    for name in ("tokenizer.json", "vocab.txt", "preprocessor_config.json", "README.md", "code.py"):
        (folder / name).write_text("{}")
    return folder


def resnet(folder: Path) -> None:
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])
    quantize_model(ResNetForImageClassification(config).eval(), QuantConfig(Grid(4))).save_pretrained(folder)


@pytest.mark.parametrize(
    ("family", "config", "message"),
    [
        ("gpt2", QuantConfig.parse("w2a8"), r"h\.0\.attn\.c_attn \(PackedConv1D\).* and 2 more.*--to onnx"),
        ("bert", QuantConfig(Grid(8, symmetric=False)), r"bert\..*: asymmetric 8-bit.*--to onnx"),
        ("bert", QuantConfig(Grid(4), Grid(2, per="token", levels="half")), r"bert\..*: its inputs have half levels"),
        ("opt", QuantConfig(Grid(4), activation=Grid(8, per="tensor")), r"activation_fn \(QuantReLU\)"),
        ("bert", QuantConfig(None, embedding=Grid(8)), "only token tables are quantized"),
    ],
)
def test_what_the_format_cannot_say_is_refused_by_name(
    family: str, config: QuantConfig, message: str, tmp_path: Path
) -> None:
    student_of(family, config).save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match=message):
        to_compressed(tmp_path / "ours", tmp_path / "stock")
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def test_convolutions_are_refused(tmp_path: Path) -> None:
    resnet(tmp_path / "ours")
    with pytest.raises(ValueError, match=r"PackedConv2d.*--to onnx"):
        to_compressed(tmp_path / "ours", tmp_path / "stock")


def test_the_folder_appears_whole_or_not_at_all(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(compressed, "check_written", stop)
        to_compressed(saved, tmp_path / "stock")
    assert list(tmp_path.iterdir()) == []
    to_compressed(saved, tmp_path / "stock")
    names = {"config.json", "model.safetensors", "tokenizer.json", "vocab.txt", "preprocessor_config.json"}
    assert {path.name for path in (tmp_path / "stock").iterdir()} == names
    with pytest.raises(ValueError, match="exists already"):
        to_compressed(saved, tmp_path / "stock")
    with pytest.raises(ValueError, match="no folder with a saved student"):
        to_compressed(tmp_path, tmp_path / "again")
    with pytest.raises(ValueError, match="zsaq reads quant_method"):
        to_compressed(tmp_path / "stock", tmp_path / "again")


def test_a_layer_that_would_be_read_in_floats_is_refused(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = compressed.quantization_config

    def forgetful(model: Any, layers: Any) -> dict[str, Any]:
        return honest(model, layers) | {"ignore": ["classifier", "bert.pooler.dense"]}

    monkeypatch.setattr(compressed, "quantization_config", forgetful)
    with pytest.raises(ValueError, match=r"bert\.pooler\.dense"):
        to_compressed(saved, tmp_path / "stock")
    assert list(tmp_path.iterdir()) == []


def test_without_the_package_the_error_says_what_to_install(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "compressed_tensors", None)
    with pytest.raises(ValueError, match=r"pip install 'zsaq\[export\]'"):
        to_compressed(saved, tmp_path / "stock")


def test_half_precision_is_exported_and_told(tmp_path: Path) -> None:
    student: Any = student_of("bert", QuantConfig.parse("w4a16"))
    student.to(torch.bfloat16).save_pretrained(tmp_path / "ours")
    facts = to_compressed(tmp_path / "ours", tmp_path / "stock")
    assert any("scales are rounded to torch.bfloat16" in change for change in facts["changed"])
    tensors = load_file(tmp_path / "stock" / "model.safetensors")
    assert tensors["bert.pooler.dense.weight_scale"].dtype == torch.bfloat16
