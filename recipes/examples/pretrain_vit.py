"""Pretrain a small ViT from scratch on labelled images that you give: a home-made teacher where no pretrained one is.

    accelerate launch recipes/examples/pretrain_vit.py --train ../shared/data/cifar10/train-50000-jpeg.parquet \\
        --test ../shared/data/cifar10/test-10000-jpeg.parquet --steps 10000 --output_dir outputs/vit-cifar10

The budget is `--steps` batches of `--batch` images for each process. Images are cropped at random after a reflecting
border, flipped, and mixed in pairs (Zhang et al. 2018, arXiv 1710.09412); AdamW with warm-up and cosine. Labels are
used here and nowhere after: a zero-shot student sees the saved teacher alone.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed
from torch import Tensor
from torch.nn import functional as F
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor, get_cosine_schedule_with_warmup

from zsaq.atomic import atomic_folder
from zsaq.io.target import ready_new
from zsaq.script import natural, positive, told
from zsaq.train.loop import processes

with told():
    from zsaq.eval.images import ImageSource, open_pictures

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BORDER = 4


def read_images(path: str, size: int) -> tuple[Tensor, Tensor]:
    """Images uint8 [N, 3, size, size] and labels int64 [N] of a parquet file with columns `image` and `label`."""
    images, labels = [], []
    for row in open_pictures(ImageSource(path)):
        picture = row.image()
        picture = picture if picture.size == (size, size) else picture.resize((size, size))
        images.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1))
        labels.append(row.label)
    if not images:
        raise ValueError(f"{path} holds no rows; give labelled images")
    return torch.stack(images), torch.tensor(labels)


def normalised(images: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] to float32 in normalised space."""
    mean, deviation = (torch.tensor(v, device=images.device)[:, None, None] for v in (MEAN, DEVIATION))
    return (images.float() / 255 - mean) / deviation


def augmented(images: Tensor, rng: torch.Generator) -> Tensor:
    """Normalised images [B, 3, S, S], each at its own crop of the bordered image and flipped at random."""
    count, _, size, _ = images.shape
    bordered = F.pad(normalised(images), (BORDER,) * 4, mode="reflect")
    shifts = torch.randint(0, 2 * BORDER + 1, (2, count, 1), generator=rng)
    flip = torch.randint(0, 2, (count, 1), generator=rng).bool()
    rows, columns = (shift + torch.arange(size) for shift in shifts)
    columns = torch.where(flip, columns.flip(1), columns)
    which = torch.arange(count)[:, None, None]
    # Advanced indices apart from each other put their shape [B, S, S] first.
    return bordered[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def batches(
    images: Tensor, labels: Tensor, classes: int, size: int, mixup: float, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches: pixels [size, 3, S, S] and soft labels [size, classes], mixed in pairs by Beta(mixup, mixup)."""
    rng, share = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    while True:
        order = torch.randperm(len(images), generator=rng)
        for start in range(0, len(order) - size + 1, size):
            index = order[start : start + size]
            pixels, wanted = augmented(images[index], rng), F.one_hot(labels[index], classes).float()
            if mixup:
                kept = float(share.beta(mixup, mixup))
                pixels, wanted = (kept * x + (1 - kept) * x.flip(0) for x in (pixels, wanted))
            yield pixels, wanted


@torch.no_grad()
def accuracy(model: torch.nn.Module, images: Tensor, labels: Tensor, device: torch.device) -> float:
    """Top-1 in percent, in eval mode."""
    model.eval()
    right = sum(
        int((model(pixel_values=normalised(part.to(device))).logits.argmax(-1).cpu() == wanted).sum())
        for part, wanted in zip(images.split(500), labels.split(500), strict=True)
    )
    return 100 * right / len(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="parquet with columns image and label")
    parser.add_argument("--test", help="the same, for the accuracy in the record; never trained on")
    parser.add_argument("--size", type=positive, default=32, help="side of the images in pixels")
    parser.add_argument("--patch", type=positive, default=4)
    parser.add_argument("--hidden", type=positive, default=192)
    parser.add_argument("--layers", type=positive, default=6)
    parser.add_argument("--heads", type=positive, default=3)
    parser.add_argument("--batch", type=positive, default=256)
    parser.add_argument("--mixup", type=float, default=0.2, help="0 mixes nothing")
    parser.add_argument("--steps", type=positive, default=10_000)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=natural, default=0)
    parser.add_argument("--output_dir", required=True)
    args = parser.parse_args()
    if args.size % args.patch or args.hidden % args.heads:
        raise ValueError(f"--size {args.size} must be a multiple of --patch, --hidden {args.hidden} of --heads")
    target = ready_new(args.output_dir)

    set_seed(args.seed)
    accelerator = processes()
    images, labels = read_images(args.train, args.size)
    if len(images) < args.batch:
        raise ValueError(f"{args.train} holds {len(images)} images, fewer than --batch {args.batch}")
    classes = int(labels.max()) + 1
    test = read_images(args.test, args.size) if args.test else None
    if test and int(test[1].max()) >= classes:
        raise ValueError(f"{args.test} has the label {int(test[1].max())}, and {args.train} none beyond {classes - 1}")
    names = {i: str(i) for i in range(classes)}
    config = ViTConfig(
        image_size=args.size, patch_size=args.patch, hidden_size=args.hidden, num_hidden_layers=args.layers,
        num_attention_heads=args.heads, intermediate_size=4 * args.hidden, id2label=names,
        label2id={name: i for i, name in names.items()},
    )  # fmt: skip
    model = ViTForImageClassification(config)
    decayed = [p for p in model.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if p.ndim != 2]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, args.lr)
    schedule = get_cosine_schedule_with_warmup(optimizer, args.steps // 10, args.steps)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    wrapped.train()
    accelerator.print(
        f"{len(images)} images of {classes} classes, {sum(p.numel() for p in model.parameters())} weights"
    )
    stream = batches(images, labels, classes, args.batch, args.mixup, args.seed + accelerator.process_index)
    begin, losses = time.time(), []
    for step in range(1, args.steps + 1):
        pixels, wanted = (value.to(accelerator.device, non_blocking=True) for value in next(stream))
        loss = F.cross_entropy(wrapped(pixel_values=pixels).logits.float(), wanted)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(wrapped.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise ValueError(f"the loss is {losses[-1]} at step {step}: lower --lr (now {args.lr})")
        if step % 100 == 0 or step == args.steps:
            mean = sum(losses[-100:]) / len(losses[-100:])
            accelerator.print(f"step {step}/{args.steps}  loss {mean:.3f}  {time.time() - begin:.0f} s", flush=True)
    if accelerator.is_main_process:
        record: dict[str, Any] = {**vars(args), "loss": mean, "seconds": time.time() - begin}
        record["processes"] = accelerator.num_processes
        bare = accelerator.unwrap_model(wrapped).float()
        if test:
            record["top1"] = accuracy(bare, *test, accelerator.device)
            accelerator.print(f"top-1 on {args.test}: {record['top1']:.2f} %", flush=True)
        with atomic_folder(target, ready_new) as folder:
            bare.save_pretrained(folder)
            ViTImageProcessor(
                size={"height": args.size, "width": args.size}, image_mean=list(MEAN), image_std=list(DEVIATION)
            ).save_pretrained(folder)
            (folder / "pretraining.json").write_text(json.dumps(record, indent=1))
    accelerator.end_training()


if __name__ == "__main__":
    with told():
        main()
