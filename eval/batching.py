"""Pictures, decoded by threads and shared among processes, as batches for a classifier."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import torch
from PIL import Image
from torch import Tensor

from zsaq.eval.decoding import Unreadable, decoded
from zsaq.eval.images import Picture
from zsaq.eval.remarks import Remarks

Transform = Callable[[Image.Image], Tensor]
Batch = Mapping[str, Tensor]


def batches(
    pictures: Iterable[Picture], transform: Transform, order: list[int], size: int, share: tuple[int, int],
    threads: int, remarks: Remarks | None = None,
) -> Iterator[Batch]:  # fmt: skip
    """What `score` reads: this process's pictures, every n-th with `share` (first, n), decoded by threads.

    With `remarks`, those that cannot be read are left out and told there; without, they raise ValueError.

    Not a DataLoader with workers: a stream of `datasets` splits itself among those once more, and rows are lost.
    """

    def pixels(row: tuple[int, Picture]) -> Tensor | None:
        number, picture = row
        try:
            image, kinds = decoded(picture.content, picture.name)
        except Unreadable as error:
            if remarks is None:
                raise
            return remarks.unreadable(number, error)
        if remarks is not None:
            remarks.add(number, kinds)
        return transform(image)

    own, any_read = ((n, p) for n, p in enumerate(pictures) if n % share[1] == share[0]), False
    with ThreadPoolExecutor(threads) as pool:
        while chunk := list(islice(own, size)):
            read = [(n, p, x) for (n, p), x in zip(chunk, pool.map(pixels, chunk), strict=True) if x is not None]
            if not read:
                continue
            any_read = True
            # Of data without names, a label outside of the outputs goes on: `grade` tells what is wrong with it.
            labels = [order[p.label] if 0 <= p.label < len(order) else p.label for _, p, _ in read]
            yield {
                "index": torch.tensor([n for n, _, _ in read]),
                "pixel_values": torch.stack([x for _, _, x in read]),
                "labels": torch.tensor(labels),
            }
    if remarks is not None and remarks.why and not any_read and share[1] == 1:
        raise ValueError(f"none of the pictures can be read; the first: {remarks.why}")
