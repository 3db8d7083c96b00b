"""What only looks at a net leaves it as it was: modes, and the statistics that a pass in train mode would move."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from vision_toys import CLASSES, cnn, images, resnet
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.losses.features import ActivationMap
from zsaq.vision.losses.labels import labelled
from zsaq.vision.losses.moments import moments_of
from zsaq.vision.losses.priors import MarginDistance
from zsaq.vision.models import classifier, last_feature_map
from zsaq.vision.papers.dsg import slack
from zsaq.vision.presets import preset_config

SPEC, PIXELS = ImageSpec(CLASSES, 32), images(4, 32)
BATCH = {"pixel_values": PIXELS, "labels": torch.arange(4)}
LOOKS: dict[str, Callable[[nn.Module], Any]] = {
    "brecq": lambda net: preset_config("w4a4", "brecq", net, SPEC),
    "last_feature_map": lambda net: last_feature_map(net, SPEC),
    "activation maps": lambda net: ActivationMap(net, PIXELS),
    "moments": lambda net: moments_of(net, [BATCH]),
    "labels": lambda net: labelled(net, {"pixel_values": PIXELS}),
    "slack": lambda net: slack(net, SPEC, images=2),
    "centres": lambda net: MarginDistance(nn.Linear, 0.1, 0.5).remember(net, BATCH),
}


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("make", [cnn, resnet])
def test_a_look_changes_nothing(make: Callable[[], nn.Module], look: str) -> None:
    net = classifier(make()).train()
    next(m for m in net.modules() if isinstance(m, nn.BatchNorm2d)).eval()
    modes = [m.training for m in net.modules()]
    state = {name: value.clone() for name, value in net.state_dict().items()}
    LOOKS[look](net)
    assert [m.training for m in net.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_a_look_sees_the_net_as_it_answers() -> None:
    """In train mode the maps, moments and labels were those of another net."""
    still, moving = classifier(cnn()), classifier(cnn()).train()
    for look in ("brecq", "last_feature_map"):
        assert LOOKS[look](still) == LOOKS[look](moving)
    assert all(torch.equal(a.mean, b.mean) for a, b in zip(*map(LOOKS["moments"], (still, moving)), strict=True))
    assert torch.equal(*(LOOKS["labels"](net)["labels"] for net in (still, moving)))
    assert [LOOKS["activation maps"](net).closed is not None for net in (still, moving)] == [True, True]
