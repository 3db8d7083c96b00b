"""Static inputs in ONNX Runtime: the scale and the bias stand in the product, and nothing runs that nobody reads."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from test_export_onnx import VOCABULARY, bert, gpt2, llama
from zsaq import Grid, QuantConfig, calibrate, export, load, quantize_model, save
from zsaq.deploy.parity import verify
from zsaq.io.inputs import random_inputs

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

ASYMMETRIC = QuantConfig(Grid(4), Grid(8, symmetric=False, per="tensor"), embedding=Grid(8))
NARROW = QuantConfig(Grid(3, symmetric=False), Grid(5, symmetric=False, per="tensor"), embedding=Grid(4))
MAKERS = {"bert": bert, "gpt2": gpt2, "llama": llama}
slow = pytest.mark.slow
STUDENTS = [
    ("bert", "w2a8se4"), ("bert", NARROW),
    *(pytest.param(("bert", other), marks=slow) for other in ("w4a8s", "w4a4s", "w3a6s-s16", "w2a8s-ternary", "w4a16")),
    *(pytest.param(("bert", other), marks=slow) for other in ("w2a8sg32", "w2a8e4")),
    *(pytest.param(each, marks=slow) for each in (("bert", ASYMMETRIC), ("gpt2", "w4a8s"), ("llama", "w2a8se8"))),
]  # fmt: skip


def student(kind: str, config: Any) -> Any:
    torch.manual_seed(0)
    model = quantize_model(MAKERS[kind]().eval(), config)
    return calibrate(model, [random_inputs(model, (4, 12), seed) for seed in range(2)])


def graph_of(folder: Path, name: str = "model.onnx") -> Any:
    return onnx.load(str(folder / "onnx" / name), load_external_data=False).graph


@pytest.fixture(
    scope="module", params=STUDENTS, ids=lambda p: f"{p[0]}-{p[1] if isinstance(p[1], str) else p[1].input}"
)
def exported(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    kind, config = request.param
    folder = save(student(kind, config), tmp_path_factory.mktemp("static") / "student")
    export(folder, "onnx")
    return folder, config


def test_every_layer_agrees_with_its_rule(exported: tuple[Path, Any]) -> None:
    report = verify(exported[0], write=False)
    assert report["agrees"], report["zsaq onnx"]


def test_no_node_is_dead_and_none_changes_nothing(exported: tuple[Path, Any]) -> None:
    for file in (exported[0] / "onnx").glob("*.onnx"):
        graph = graph_of(exported[0], file.name)
        read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
        assert not [node.op_type for node in graph.node if not set(node.output) & read]
        assert not {tensor.name for tensor in graph.initializer} - read
        turns = [list(node.attribute[0].ints) for node in graph.node if node.op_type == "Transpose"]
        assert not [turn for turn in turns if turn == sorted(turn)]
        assert "CastLike" not in {node.op_type for node in graph.node}


def test_a_static_layer_is_a_rounding_and_a_product(exported: tuple[Path, Any]) -> None:
    folder, config = exported
    if config not in ("w2a8se4", "w4a8s", "w4a4s"):
        pytest.skip("not symmetric, or not one scale a row")
    graph = graph_of(folder)
    told = json.loads((folder / "onnx" / "export.json").read_text())["layers"]
    layers = list(told.values()).count("Int8Linear")
    kinds = Counter(node.op_type for node in graph.node)
    assert kinds["QuantizeLinear"] == kinds["MatMulIntegerToFloat"] == layers
    assert kinds["Clip"] == (layers if config == "w4a4s" else 0)
    assert not kinds["Div"] + kinds["ReduceMax"]
    products = [node for node in graph.node if node.op_type == "MatMulIntegerToFloat"]
    assert all(len(node.input) == 7 and node.input[6] for node in products)


def test_codes_stay_packed_in_the_file(exported: tuple[Path, Any]) -> None:
    folder, config = exported
    stored = [t for t in graph_of(folder).initializer if t.name.endswith(".stored") and "embed" not in t.name]
    assert stored and (not str(config).startswith("w2") or {t.dims[1] for t in stored} <= {64 // 4, 128 // 4})


def test_a_bias_of_a_token_s_scale_has_two_dimensions(exported: tuple[Path, Any]) -> None:
    """ONNX Runtime would fuse one of a single dimension with the GELU behind it, into a slower kernel."""
    folder, config = exported
    graph = graph_of(folder)
    flat = {value.name for value in graph.initializer if len(value.dims) == 1 and "dense.bias" in value.name}
    added = {name for node in graph.node if node.op_type == "Add" for name in node.input}
    assert not flat & added or config == "w4a16"


@pytest.mark.parametrize("length", [1, 3, 5])
def test_tidying_changes_no_value(length: int) -> None:
    """Views that undo each other, that do not, and a reshape that is one by its shape alone."""
    import onnxruntime
    from onnx import TensorProto as Proto
    from onnx import helper

    from zsaq.deploy.onnx.tidy import tidy

    def value(name: str, *shape: int | str) -> Any:
        return helper.make_tensor_value_info(name, Proto.FLOAT, shape)

    def turned(source: str, name: str, *perm: int) -> Any:
        return helper.make_node("Transpose", [source], [name], perm=perm)

    def viewed(source: str, name: str, shape: str, zero: int = 1) -> Any:
        return helper.make_node("Reshape", [source, shape], [name], allowzero=zero)

    shapes = {"heads": [-1, length, 2, 4], "flat": [-1, length, 8], "rows": [-1, 8], "kept": [0, 0, 8], "one": [1]}
    known = [helper.make_tensor(name, Proto.INT64, [len(shape)], shape) for name, shape in shapes.items()]
    nodes = [
        viewed("x", "a", "heads"), turned("a", "b", 0, 2, 1, 3), turned("b", "c", 0, 2, 1, 3), viewed("c", "d", "flat"),
        helper.make_node("Relu", ["d"], ["same"]),
        viewed("b", "e", "flat"), helper.make_node("Relu", ["e"], ["other"]),
        turned("b", "f", 3, 1, 0, 2), turned("f", "g", 1, 0, 2, 3), helper.make_node("Relu", ["g"], ["turned"]),
        viewed("x", "h", "rows"), viewed("h", "i", "flat"), viewed("i", "j", "kept", 0),
        helper.make_node("CastLike", ["one", "x"], ["float"]), helper.make_node("Add", ["j", "float"], ["more"]),
        helper.make_node("Abs", ["x"], ["unread"]), turned("x", "asked", 0, 1, 2),
    ]  # fmt: skip
    outputs = {"same": 3, "other": 3, "turned": 4, "more": 3, "asked": 3}
    told = [value(name, "batch", length, 8) for name in ("d", "e", "i", "j")]
    graph = helper.make_graph(
        nodes, "g", [value("x", "batch", length, 8)], [value(name, *"abcd"[:n]) for name, n in outputs.items()], known,
        value_info=told,
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    x = torch.randn(2, length, 8)
    answers = []
    for _ in range(2):
        session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        answers.append(session.run(None, {"x": x.numpy()}))
        tidy(proto)
    assert all((ours == theirs).all() for ours, theirs in zip(*answers, strict=True))
    kinds = Counter(node.op_type for node in proto.graph.node)
    assert kinds == {"Relu": 3, "Add": 1, "Transpose": 4, "Reshape": 2}


def test_students_of_static_inputs_answer_as_they_were_loaded(exported: tuple[Path, Any]) -> None:
    from zsaq.deploy.onnx.session import OnnxModel

    folder, _ = exported
    ids = torch.randint(0, VOCABULARY, (3, 7))
    with torch.no_grad():
        want = load(folder)(ids).logits
    got = OnnxModel(folder)(input_ids=ids)
    assert (got - want).abs().max() < 0.02 * want.abs().max() + 0.01
