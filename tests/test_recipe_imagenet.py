"""torchvision's MobileNetV2 under transformers' names: against a plain forward pass, and what does not fit."""

import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as Column
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

sys.path.insert(0, str(Path(__file__).parent.parent / "recipes"))

from examples import imagenet
from examples.subjects import photos

ROWS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
State = dict[str, Tensor]


def plain(state: State, x: Tensor) -> Tensor:
    """The net of Sandler et al. 2018, table 2 (t, c, n, s), on torchvision's names."""

    def layer(x: Tensor, convolution: str, norm: str, stride: int = 1, act: bool = True) -> Tensor:
        weight = state[f"features.{convolution}.weight"]
        groups = x.shape[1] if weight.shape[1] == 1 else 1
        x = F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, 1, groups)
        mean, variance, gain, bias = (
            state[f"features.{norm}.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias")
        )
        x = F.batch_norm(x, mean, variance, gain, bias, eps=1e-5)
        return F.relu6(x) if act else x

    x, number = layer(x, "0.0", "0.1", 2), 1
    for expansion, _, repeats, first in ROWS:
        for repeat in range(repeats):
            inside, stride = x, 1 if repeat else first
            last = 1
            if expansion > 1:
                inside, last = layer(inside, f"{number}.conv.0.0", f"{number}.conv.0.1"), 2
            inside = layer(inside, f"{number}.conv.{last - 1}.0", f"{number}.conv.{last - 1}.1", stride)
            inside = layer(inside, f"{number}.conv.{last}", f"{number}.conv.{last + 1}", act=False)
            x, number = x + inside if repeat else inside, number + 1
    x = layer(x, "18.0", "18.1").mean((2, 3))
    return F.linear(x, state["classifier.1.weight"], state["classifier.1.bias"])


@pytest.fixture(scope="module")
def state() -> State:
    """Random weights under torchvision's names, 7 classes."""
    torch.manual_seed(0)
    config = MobileNetV2Config(num_labels=7, tf_padding=False)  # pyright: ignore[reportCallIssue]
    net = MobileNetV2ForImageClassification(config)
    names = {place: name for name, place in imagenet.places().items()}
    weights = {
        f"{names[stem]}.{leaf}": value
        for name, value in net.state_dict().items()
        for stem, _, leaf in [name.rpartition(".")]
    }
    for name, value in weights.items():
        if name.endswith("running_var"):
            value.uniform_(0.2, 0.4)
        elif name.endswith(("running_mean", "bias")):
            value.normal_(0, 0.1)
        elif value.ndim == 4:
            torch.nn.init.kaiming_normal_(value)
    return weights


def test_the_loaded_net_is_the_plain_one(state: State, tmp_path: Path) -> None:
    save_file(state, tmp_path / "net.safetensors")
    net = imagenet.load_mobilenet(tmp_path / "net.safetensors")
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        logits, wanted = net(pixel_values=x).logits, plain(state, x)
    assert not net.training and wanted.std() > 1e-2
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features.3.conv.0.0.weight": None}, "lacks .*layer.1.expand_1x1.convolution.weight"),
        ({"features.18.0.bias": torch.zeros(1280)}, "has .*conv_1x1.convolution.bias.* too much"),
        ({"features.18.1.bias": torch.zeros(12)}, r"conv_1x1.normalization.bias \[12\]"),
        ({"features.19.weight": torch.zeros(1)}, "holds .*features.19.weight"),
        ({"classifier.1.weight": None}, "give torchvision's MobileNetV2"),
    ],
)
def test_another_state_dict_is_refused(
    state: State, change: dict[str, Tensor | None], message: str, tmp_path: Path
) -> None:
    changed = {name: value for name, value in (state | change).items() if value is not None}
    save_file(changed, tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match=message):
        imagenet.load_mobilenet(tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match="is no file"):
        imagenet.load_mobilenet(tmp_path / "none.safetensors")


def test_a_subject_streams_whole_pictures(state: State, tmp_path: Path) -> None:
    save_file(state, tmp_path / "net.safetensors")
    for i in range(3):
        Image.new("RGB", (300 - i, 256), (255 * (i == 0), 0, 0)).save(tmp_path / f"{i}.png")
    pictures = [{"bytes": (tmp_path / f"{i}.png").read_bytes(), "path": None} for i in range(3)]
    features = Features({"image": Column(), "label": Value("int64")})
    data = str(tmp_path / "val.parquet")
    Dataset.from_dict({"image": pictures, "label": [3, 1, 2]}, features).to_parquet(data)
    subject = photos(imagenet.NETS["mobilenet"], str(tmp_path / "net.safetensors"), [data], data, 2)
    assert subject["data"].name == "net on val, first 2"
    assert set(subject["score"](subject["model"])) == {"accuracy", "agreement", "kl", "top5"}
    assert photos(imagenet.NETS["mobilenet"], str(tmp_path / "net.safetensors"), [data])["real"] is None
    (batch,) = imagenet.stream(data, limit=2)
    assert batch["labels"].tolist() == [3, 1] and batch["pixel_values"].shape == (2, 3, 224, 224)
    red = batch["pixel_values"][0, 0]
    torch.testing.assert_close(red, torch.full_like(red, (1 - 0.485) / 0.229), rtol=1e-4, atol=1e-4)
    assert len(subject["real"]()) == 3
