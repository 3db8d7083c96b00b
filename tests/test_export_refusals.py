"""What torch, onnx or ONNX Runtime raise when a model is exported is one line that names the model and what to do."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch.onnx.errors import OnnxExporterError, UnsupportedOperatorError
from transformers import ResNetConfig, ResNetForImageClassification, XLNetConfig, XLNetForSequenceClassification

from exported import tiny_bert
from zsaq.deploy.bench import bench
from zsaq.deploy.foreign import cause_of, in_one_line
from zsaq.deploy.onnx import write
from zsaq.deploy.onnx.session import OnnxModel
from zsaq.deploy.onnx.tracing import check_varying, trace
from zsaq.deploy.onnx.weights import Weights
from zsaq.deploy.onnx.write import write_graph
from zsaq.deploy.parity import verify
from zsaq.deploy.runtimes import export
from zsaq.io.saving import save
from zsaq.quant.config import QuantConfig
from zsaq.quant.model import quantize_model
from zsaq_cli.deploying import sized

DECODED = "first line\nsecond line with a very long stack"


def failing(error: Exception) -> Any:
    def fail(*args: Any, **options: Any) -> Any:
        try:
            raise KeyError("aten.unheard_of")
        except KeyError as cause:
            raise error from cause

    return fail


@pytest.mark.parametrize(
    "error",
    [
        OnnxExporterError(DECODED),
        UnsupportedOperatorError("aten::x", 20, None),
        onnx.checker.ValidationError(DECODED),
        RuntimeError(DECODED),
        TypeError(""),
        ValueError(DECODED),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_the_exporter_raises_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(torch.onnx, "export", failing(error))
    with pytest.raises(
        ValueError, match=r"^BertForSequenceClassification cannot .*KeyError: 'aten.unheard_of'; run"
    ) as e:
        trace(tiny_bert())
    assert "\n" not in str(e.value) and "zsaq.load(DIR)" in str(e.value)


def test_a_model_that_torch_cannot_write_is_named() -> None:
    config = XLNetConfig(vocab_size=50, d_model=16, n_layer=1, n_head=2, d_inner=16)
    with pytest.raises(
        ValueError, match=r"XLNetForSequenceClassification cannot be written as an ONNX graph: .*; run"
    ) as e:
        trace(XLNetForSequenceClassification(config).eval())
    assert "\n" not in str(e.value)


def test_a_model_that_does_not_run_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_bert()
    monkeypatch.setattr(model.bert, "forward", failing(IndexError("beyond")))
    with pytest.raises(ValueError, match=r"does not run on random inputs input_ids 2 x 8.*KeyError"):
        trace(model)


def test_a_graph_that_the_runtime_does_not_open_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    node = onnx.helper.make_node("NoSuchOperator", ["a"], ["logits"])
    a, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n"]) for name in ("a", "logits"))
    proto = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [a], [y]))
    monkeypatch.setattr(write, "trace", lambda *given: (proto, {"a": torch.ones(2)}))
    with pytest.raises(ValueError, match=r"Linear is written as a graph that ONNX Runtime does not run: Fail: "):
        write_graph(torch.nn.Linear(1, 1), tmp_path, Weights(tmp_path / "w"))  # type: ignore[arg-type]


def test_a_graph_whose_code_fixed_a_length_is_refused() -> None:
    ids = onnx.helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["batch", 8])
    proto = onnx.helper.make_model(onnx.helper.make_graph([], "g", [ids], []))
    with pytest.raises(ValueError, match=r"Linear cannot .* its code fixes dimension 1 of ids to 8"):
        check_varying(torch.nn.Linear(1, 1), proto, {"ids": {0: None, 1: None}})
    check_varying(torch.nn.Linear(1, 1), proto, {"ids": {0: None}})


@pytest.mark.parametrize("error", [AssertionError, MemoryError, ImportError, KeyboardInterrupt])
def test_our_own_mistakes_stay_what_they_are(error: type[BaseException]) -> None:
    with pytest.raises(error), in_one_line(torch.nn.Linear(1, 1), "fails", "help it"):
        raise error("ours")
    assert cause_of(RuntimeError("\n\n  x\ny")) == "RuntimeError: x" and "no reason" in cause_of(KeyError())


class Processor:
    def save_pretrained(self, folder: Path) -> None:
        facts = {"do_resize": True, "size": {"height": 32, "width": 32}}
        (folder / "preprocessor_config.json").write_text(json.dumps(facts))


def test_a_graph_is_of_the_size_that_the_processor_makes_or_the_flag_says(tmp_path: Path) -> None:
    config = ResNetConfig(num_channels=1, embedding_size=16, hidden_sizes=[16, 16], depths=[1, 1], layer_type="basic")
    student = quantize_model(ResNetForImageClassification(config).eval(), QuantConfig.parse("w4a16"))
    folder = save(student, tmp_path / "student", Processor())  # type: ignore[arg-type]
    assert export(folder, "onnx", tmp_path / "plain")["shapes"] == {"pixel_values": [1, 32, 32]}
    assert export(folder, "onnx", size=(24, 40))["shapes"] == {"pixel_values": [1, 24, 40]}
    report = verify(folder, write=False)  # at the size of the export
    assert report["agrees"] and report["inputs"] == [{"pixel_values": [2, 1, 24, 40]}]
    assert not verify(folder, write=False, size=(32, 32))["agrees"]
    nones: list[Any] = ["32", ()]
    for none in nones:
        for use in (partial(verify, write=False), partial(bench, write=False)):
            with pytest.raises(ValueError, match="which is no size of images"):
                use(folder, size=none)
    model = OnnxModel(folder)
    assert model(pixel_values=torch.zeros(3, 1, 24, 40)).shape == (3, 2)
    for shape in ((1, 1, 224, 224), (1, 3, 24, 40), (24, 40)):
        with pytest.raises(
            ValueError, match=r"takes pixel_values of \w+ x 1 x 24 x 40; these have .* --size HEIGHTxWIDTH"
        ):
            model(pixel_values=torch.zeros(shape))
    with pytest.raises(ValueError, match="reads pixel_values; pixel_values is missing"):
        model()
    with pytest.raises(ValueError, match="reads pixel_values; pixels is none of them"):
        model(pixels=torch.zeros(1))
    image = torch.ones(1, 1, 24, 40, requires_grad=True)
    for alike in (image, image.double(), image.bfloat16(), image.detach().numpy().astype("float16")):
        assert torch.equal(model(pixel_values=alike), model(pixel_values=image.detach()))
    with pytest.raises(ValueError, match="takes pixel_values of float32; these are uint8"):
        model(pixel_values=image.byte())
    with pytest.raises(ValueError, match="only an ONNX graph is of one size"):
        export(folder, "compressed-tensors", size=(32, 32))


def test_the_flag_is_height_by_width() -> None:
    assert sized("32") == {"size": (32, 32)} and sized("24x40") == {"size": (24, 40)} and sized(None) == {}
    for wrong in ("", "0", "x", "3x", "24x40x3", "-3", "1e3", "999999"):
        with pytest.raises(ValueError, match="--size is"):
            sized(wrong)
