"""The vision recipes' embedded default: held-out images, the same teachers every time, the cache; and CIFAR's nets."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent / "recipes"))

from examples import cifar, digits

from zsaq.eval.imagenet import score
from zsaq.eval.images import ImageSource, open_pictures
from zsaq.vision.models import blocks, spec_of

BRIEF = {"resnet": digits.Recipe(1, 3e-3, 0.05, 128), "vit": digits.Recipe(1, 3e-3, 0.05, 128)}


def quiet(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def brief(tmp_path_factory: pytest.TempPathFactory) -> digits.Digits:
    return digits.prepare(tmp_path_factory.mktemp("cache"), quiet, BRIEF)


def test_teachers_fit_the_spec_and_the_images(brief: digits.Digits) -> None:
    for teacher in (brief.resnet, brief.vit):
        assert spec_of(teacher) == digits.SPEC and not teacher.training
        assert teacher(pixel_values=brief.test[0][:2]).logits.shape == (2, 10)
    assert brief.test[0].shape == (450, 3, 32, 32) and brief.train[0].shape == (1347, 3, 32, 32)
    assert abs(float(brief.train[0].mean())) < 0.05 and abs(float(brief.train[0].std()) - 1) < 0.05


def test_no_held_out_image_is_among_those_trained_on(brief: digits.Digits) -> None:
    seen = {image.numpy().tobytes() for image in brief.train[0]}
    assert not any(image.numpy().tobytes() in seen for image in brief.test[0])
    assert sorted(set(brief.test[1].tolist())) == sorted(set(brief.train[1].tolist())) == list(range(10))


def test_the_saved_images_are_the_held_out_ones(brief: digits.Digits) -> None:
    rows = list(open_pictures(ImageSource(str(brief.folder / "test.parquet"))))
    assert [row.label for row in rows] == brief.test[1].tolist()
    images = [row.image().convert("RGB") for row in rows[:20]]
    assert torch.equal(digits.PROCESSOR(images=images, return_tensors="pt")["pixel_values"], brief.test[0][:20])


def test_the_same_teachers_again_and_random_state_left_alone(brief: digits.Digits, tmp_path: Path) -> None:
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    again = digits.prepare(tmp_path, quiet, BRIEF)
    assert torch.equal(torch.random.get_rng_state(), before) and torch.get_num_threads() == threads
    for one, other in ((brief.resnet, again.resnet), (brief.vit, again.vit)):
        for name, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), name
    assert [folder.name for folder in tmp_path.iterdir()] == [brief.folder.name], "unfinished folders are gone"


def test_a_cached_default_is_not_trained_again(brief: digits.Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "make", lambda *_: pytest.fail("trained again"))
    lines: list[str] = []
    digits.prepare(brief.folder.parent, lines.append, BRIEF)
    assert lines == [f"the embedded teachers are in {brief.folder}"]
    assert digits.fingerprint(BRIEF) != digits.fingerprint(digits.RECIPES)


@pytest.mark.slow
def test_the_teachers_are_good(tmp_path: Path) -> None:
    data = digits.prepare(tmp_path, quiet)
    for teacher in (data.resnet, data.vit):
        assert score(teacher, [{"pixel_values": data.test[0], "labels": data.test[1]}])["top1"] > 0.95


def test_a_cifar_resnet_is_read_with_the_depth_of_its_names(tmp_path: Path) -> None:
    net = cifar.CifarResNet(2)
    state = {k: v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    save_file(state, tmp_path / "net.safetensors")
    read_back = cifar.load_resnet(tmp_path / "net.safetensors")
    images = torch.randn(2, 3, 32, 32)
    assert not read_back.training and torch.equal(read_back(images), net.eval()(images))
    assert len([u for _, u in blocks(read_back) if isinstance(u, cifar.BasicBlock)]) == 6
    relus = [m for m in read_back.modules() if isinstance(m, nn.ReLU)]
    assert len(relus) == 13, "one for each place"
    save_file({k: v for k, v in state.items() if k != "bn1.weight"}, tmp_path / "less.safetensors")
    with pytest.raises(ValueError, match=r"lacks \['bn1.weight'\]"):
        cifar.load_resnet(tmp_path / "less.safetensors")
    save_file({"weight": images}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"holds \['weight'\]"):
        cifar.load_resnet(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="is no file"):
        cifar.load_resnet(tmp_path / "none.safetensors")


def test_a_shortcut_without_weights_skips_pixels_and_adds_zero_channels() -> None:
    block = cifar.BasicBlock(2, 4, 2).eval()
    nn.init.zeros_(block.conv2.weight)
    images = torch.rand(1, 2, 4, 4)
    answer = block(images)
    assert torch.equal(answer[:, 1:3], images[:, :, ::2, ::2]) and not answer[:, [0, 3]].any()
