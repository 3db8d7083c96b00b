"""A convolution of a doubled map is what it is called, and so are its gradients."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zsaq import ImageSpec
from zsaq.vision.sources.enlarging import EnlargingConv2d
from zsaq.vision.sources.generators import Decoder
from zsaq.vision.sources.swing import Latents


def plainly(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """The reference."""
    return F.conv2d(F.interpolate(x, scale_factor=2.0), conv.weight, conv.bias, padding=1)


@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (2, 3, 1, 4), (1, 5, 7, 3), (2, 3, 8, 8)])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_it_is_the_convolution_of_a_doubled_map(shape: tuple[int, ...], order: torch.memory_format) -> None:
    rng = torch.Generator().manual_seed(0)
    conv = EnlargingConv2d(shape[1], 4).double()
    x = torch.randn(shape, generator=rng, dtype=torch.float64).contiguous(memory_format=order).requires_grad_()
    wanted, found = plainly(conv, x), conv(x)
    torch.testing.assert_close(found, wanted)
    of = [x, conv.weight, conv.bias]
    towards = torch.randn(wanted.shape, generator=rng, dtype=torch.float64)
    grads = [torch.autograd.grad(y.sin(), of, towards, create_graph=True) for y in (found, wanted)]
    for mine, reference in zip(*grads, strict=True):
        torch.testing.assert_close(mine, reference)
    second = [torch.autograd.grad(each[0].square().sum(), conv.weight)[0] for each in grads]
    torch.testing.assert_close(*second)


def test_generators_keep_the_weights_of_their_seed() -> None:
    spec = ImageSpec(10, 16)
    decoder = Latents(2, spec, seed=3).decoder
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        latents, linear = torch.randn(2, 256), nn.Linear(256, 128 * 16)
        first, second = nn.Conv2d(128, 64, 3, padding=1), nn.Conv2d(64, 3, 3, padding=1)
    assert torch.equal(Latents(2, spec, seed=3).latents, latents)
    found = [m for m in decoder.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    for mine, reference in zip(found, [linear, first, second], strict=True):
        assert torch.equal(mine.weight, reference.weight)
    wide = Decoder(spec, 100, by_label=False)
    assert wide(torch.randn(2, 100), torch.zeros(2, dtype=torch.int64)).shape == (2, 3, 16, 16)
