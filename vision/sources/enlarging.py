"""A convolution of a map that is made twice as wide, without making it: a generator's usual step, at less than half of
its multiplications and without its largest tensor."""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Which of two neighbours the three taps of a kernel fall on, [parity, neighbour, tap]: at an even place of the wide map
# on the one before, and twice on its own; at an odd one twice on its own, and on the one after.
TAPS = (((1.0, 0.0, 0.0), (0.0, 1.0, 1.0)), ((1.0, 1.0, 0.0), (0.0, 0.0, 1.0)))


@final
class EnlargingConv2d(nn.Conv2d):
    """The 3 x 3 convolution, padded by zeros, of [B, in, H, W] with every pixel doubled: [B, out, 2 H, 2 W].

    Pixels that are doubled share products. Each of the four places in a pixel sees 2 x 2 pixels of the narrow map
    through a kernel of its own, sums of the given one's taps: 4 multiplications instead of 9. The answer is that of
    `F.conv2d(F.interpolate(x, scale_factor=2), ...)` but for the order of sums.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        height, width = input.shape[-2:]
        taps = torch.tensor(TAPS, dtype=self.weight.dtype, device=self.weight.device)
        kernels = torch.einsum("rak,sbl,oikl->orsiab", taps, taps, self.weight).flatten(0, 2)
        seen = F.conv2d(input, kernels, padding=1).unflatten(1, (-1, 2, 2))  # [B, out, 2, 2, H + 1, W + 1]
        places = [seen[:, :, r, s, r : r + height, s : s + width] for r in (0, 1) for s in (0, 1)]
        wide = F.pixel_shuffle(torch.stack(places, 2).flatten(1, 2), 2)
        return wide if self.bias is None else wide + self.bias[:, None, None]
