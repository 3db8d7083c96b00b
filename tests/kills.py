"""Runs that are killed at random moments until they end, and what they leave: python tests/kills.py --kills 100.

Each run is `zsaq.launch.run` in a process of its own, killed by SIGKILL, SIGTERM or SIGINT after a random time, started
again with resume=True, and so on; at the end its model.safetensors has to be, byte for byte, that of a run which nobody
disturbed.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from language_toys import bert, bpe, opt, wordpiece
from vision_toys import CLASSES, resnet
from zsaq import launch
from zsaq.vision.image_spec import ImageSpec

GENTLE = {128 + signal.SIGINT: "SIGINT", 128 + signal.SIGTERM: "SIGTERM"}
TEXT = {"zsaq-paper": {"steps": 8, "warm": 2, "ratio": (2, 1)}, "gptq-qat": {"calibration": 2, "steps": 4}}
IMAGES = {
    "genie": {"images": 4, "image_steps": 6, "steps": 4, "batch_size": 4},
    "gdfq": {"warmup": 4, "calibration": 3, "steps": 6, "batch_size": 4},
    "synq": {"images": 4, "image_steps": 4, "steps": 4, "batch_size": 4},
}


def work(method: str, folder: Path, every: int) -> None:
    """A run of its own, in this process."""
    if method in TEXT:
        model: Any = bert(wordpiece())
        given: dict[str, Any] = {"tokenizer": wordpiece(), "generator": (opt(bpe()), bpe()), **TEXT[method]}
    else:
        model, given = resnet(), {"spec": ImageSpec(CLASSES, 32), **IMAGES[method]}
    launch.run(
        model, "w4a4" if method in IMAGES else "w2a8", folder, method=method, license="mit", checkpoint_every=every,
        resume=True, seed=3, **given,
    )  # fmt: skip


def begun(method: str, folder: Path, every: int) -> int:
    """The id of a new process that works."""
    if child := os.fork():
        return child
    code = 70
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        work(method, folder, every)
        code = 0
    except KeyboardInterrupt:  # before the run has begun
        code = 130
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        os._exit(code)


def ended(child: int) -> int:
    """The exit code of a process; -9 of one that was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def tally(kills: int, seed: int, methods: tuple[str, ...] = (*TEXT, *IMAGES)) -> Counter[str]:
    """Runs of any of the methods, until `kills` processes were killed and as many runs have ended: how many of what."""
    torch.set_num_threads(1)
    rng, counts = random.Random(seed), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="zsaq-kills-") as name:
        root, whole = Path(name), {}
        for method in methods:
            began = time.monotonic()
            assert ended(begun(method, root / method, 1)) == 0, f"{method} does not run"
            whole[method] = digest(root / method), time.monotonic() - began
        while min(counts["kills"], counts["runs"]) < kills:
            method, folder = rng.choice(methods), root / "run"
            while True:
                child = begun(method, folder, rng.choice((1, 2, 3)))
                time.sleep(rng.uniform(0, whole[method][1]))
                number = rng.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
                os.kill(child, number)
                code = ended(child)
                if code == 0:
                    break
                counts["kills"] += 1
                counts[GENTLE.get(code, "SIGKILL" if code == -signal.SIGKILL else f"exit {code}")] += 1
            counts["runs"] += 1
            counts["equal" if digest(folder) == whole[method][0] else "DIFFERENT"] += 1
            counts["left behind"] += len(list(root.glob("run*"))) - 1
            for path in root.glob("run*"):
                shutil.rmtree(path)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for what, count in sorted(tally(args.kills, args.seed).items()):
        print(f"{what:12} {count}")


if __name__ == "__main__":
    sys.exit(main())
