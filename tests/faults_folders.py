"""Sealed folders that something has damaged: every file, in every way; the manifest itself edited."""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from faults_tally import Tally, mutants
from language_toys import bert, wordpiece
from teachers import processor
from vision_toys import images, resnet
from zsaq import calibrate, load, quantize, quantize_model, save
from zsaq.io.checksums import MANIFEST
from zsaq.vision.presets import brecq

TEXT, IMAGES = "text", "images"


def text_student(seed: int = 0, labels: int = 2) -> Any:
    """A classifier of 2 bits with its tokenizer and its results."""
    tokenizer, model = wordpiece(), None
    model = bert(tokenizer, labels=labels)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)) * 0.05)
    return quantize(model, "w2a8", method="rtn", tokenizer=tokenizer, license="mit", score=lambda _: {"accuracy": 0.5})


def image_student() -> Any:
    teacher = resnet()
    from zsaq import ImageSpec

    student = quantize_model(teacher, brecq("w4a4", teacher, ImageSpec(4, 32)))
    return calibrate(student, [{"pixel_values": images(4, 32)}])


@final
class Sealed:
    """A saved student, its files as they were, and what it answers."""

    def __init__(self, root: Path, kind: str) -> None:
        self.kind, self.folder = kind, root / kind
        if kind == TEXT:
            text_student().save_pretrained(self.folder)
        else:
            save(image_student(), self.folder, processor())
        self.files = {path.name: path.read_bytes() for path in self.folder.iterdir()}
        self.answer = self.bits(load(self.folder))

    @property
    def listed(self) -> list[str]:
        return list(json.loads(self.files[MANIFEST])["files"])

    @torch.no_grad()
    def bits(self, model: Any) -> Tensor:
        ids = torch.arange(24).reshape(2, 12) * 7 % 60
        inputs = {"input_ids": ids} if self.kind == TEXT else {"pixel_values": images(2, 32, seed=9)}
        return model.eval()(**inputs).logits.contiguous().view(torch.int32)

    def restore(self) -> None:
        shutil.rmtree(self.folder)
        self.folder.mkdir()
        for name, data in self.files.items():
            (self.folder / name).write_bytes(data)

    def same(self) -> bool:
        """Whether what lies there loads, and answers what it did."""
        return torch.equal(self.bits(load(self.folder)), self.answer)


def damages(
    name: str, others: list[str], rng: random.Random, flips: int
) -> Iterator[tuple[str, Callable[[Path], Any]]]:
    """Ways to spoil the file `name` of a folder."""

    def edit(change: Callable[[bytearray], Any]) -> Callable[[Path], Any]:
        def spoil(folder: Path) -> None:
            data = bytearray((folder / name).read_bytes())
            change(data)
            (folder / name).write_bytes(data)

        return spoil

    def flip(place: float, bit: int) -> Callable[[bytearray], Any]:
        def change(data: bytearray) -> None:
            data[int(place * len(data))] ^= 1 << bit

        return change

    for _ in range(flips):
        yield "a bit flipped", edit(flip(rng.random(), rng.randrange(8)))
    for _ in range(flips // 4 + 1):
        share = rng.random()
        yield "cut off", lambda f, share=share: os.truncate(f / name, int(share * (f / name).stat().st_size))
        yield (
            "zeros within",
            edit(
                lambda d, share=share: d.__setitem__(
                    slice(int(share * len(d)), None), bytes(len(d) - int(share * len(d)))
                )
            ),
        )
    yield "a byte more", edit(lambda d: d.append(0))
    yield "a byte less", edit(lambda d: d.pop())
    yield "emptied", lambda f: os.truncate(f / name, 0)
    yield "removed", lambda f: (f / name).unlink()
    yield "renamed", lambda f: (f / name).rename(f / f"other-{name}")
    yield "in capitals", lambda f: (f / name).rename(f / name.upper())
    yield "a folder", lambda f: ((f / name).unlink(), (f / name).mkdir())
    yield "a link into nothing", lambda f: ((f / name).unlink(), (f / name).symlink_to("nowhere"))
    yield (
        "a link outside",
        lambda f: (
            shutil.copy(f / name, f.parent / "outside"),
            (f / name).unlink(),
            (f / name).symlink_to(f.parent / "outside"),
        ),
    )
    yield "a pipe", lambda f: ((f / name).unlink(), os.mkfifo(f / name))
    for other in others:
        yield f"swapped with {other}", lambda f, o=other: swap(f / name, f / o)
        yield f"as {other}", lambda f, o=other: shutil.copy(f / name, f / o)


def swap(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


FOREIGN = (
    *("pytorch_model.bin", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "adapter_config.json"),
    *("modeling_bert.py", "adapter_model.safetensors", "chat_template.jinja", "added_tokens.json", "vocab.txt"),
    *("generation_config.json", "processor_config.json", "tf_model.h5", "flax_model.msgpack", "quantize_config.json"),
)


def damaged_folders(root: Path, rng: random.Random, flips: int, edits: int) -> list[Tally]:
    """Every listed file in every way, files that a loader might read beside them, and edits of the manifest."""
    tallies = []
    for kind in (TEXT, IMAGES):
        sealed, files, manifest = Sealed(root, kind), Tally(f"sealed folder ({kind})"), Tally(f"its manifest ({kind})")
        for name in sealed.listed:
            for how, spoil in damages(name, [n for n in sealed.listed if n != name], rng, flips):
                spoil(sealed.folder)
                files.attempt(f"{name} {how}", sealed.same)
                sealed.restore()
        for name in set(FOREIGN) - set(sealed.listed):
            (sealed.folder / name).write_bytes(b"{}")
            files.attempt(f"{name} beside", sealed.same)
            sealed.restore()
        for how, spoil in damages(MANIFEST, sealed.listed, rng, flips):
            if how != "removed" and how != "in capitals" and how != "renamed":  # then it is no sealed folder
                spoil(sealed.folder)
                manifest.attempt(f"{MANIFEST} {how}", sealed.same)
                sealed.restore()
        for label, _, _, changed in mutants(json.loads(sealed.files[MANIFEST]), rng, edits):
            (sealed.folder / MANIFEST).write_text(json.dumps(changed))
            manifest.attempt(label, sealed.same)
            sealed.restore()
        tallies += [files, manifest]
    return tallies
