"""Two processes of one run: asked to stop they stop together, one that dies takes the other along, and both go on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CODE = """
import os, signal, sys
from language_toys import bert, bpe, opt, wordpiece
from zsaq import launch
from zsaq.train.checkpoint import Checkpoint
from zsaq.train.loop import processes

out, number, resume = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "resume"
steps, after = [], Checkpoint.after

def counted(self, *rest):
    steps.append(rest[0])
    if number and len(steps) == 5 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), number)
    after(self, *rest)

Checkpoint.after = counted
args = launch.parse(launch.parser("two processes", "w2a8", "two", method="zsaq-paper"), ["--output_dir", out])
with launch.session(args) as loop:
    launch.run(bert(wordpiece()), "w2a8", out, loop=loop, method="zsaq-paper", tokenizer=wordpiece(), resume=resume,
               generator=(opt(bpe()), bpe()), steps=8, warm=2, ratio=(2, 1), license="mit", checkpoint_every=3)
"""


def run(folder: Path, number: int = 0, resume: bool = False) -> subprocess.CompletedProcess[str]:
    (folder / "job.py").write_text(CODE)
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(folder / "job.py")]
    return subprocess.run(
        [sys.executable, *words, str(folder / "out"), str(number), "resume" if resume else "anew"], text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests")))}, capture_output=True,
        timeout=180,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("whole")
    done = run(folder)
    assert done.returncode == 0, done.stderr
    return (folder / "out" / "model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "words"), [(15, "stopped; what was done is kept"), (9, "another process of this run")]
)
def test_two_processes_go_on(number: int, words: str, whole: bytes, tmp_path: Path) -> None:
    stopped = run(tmp_path, number)
    assert stopped.returncode != 0 and words in stopped.stderr, stopped.stderr
    assert not (tmp_path / "out").exists()
    rest = run(tmp_path, resume=True)
    assert rest.returncode == 0 and "goes on from" in rest.stderr, rest.stderr
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["job.py", "out"]
