"""A run of two processes: one writes, both end well."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import zsaq

ROOT = Path(__file__).parent.parent
CODE = """
import sys
from language_toys import bert, bpe, opt, wordpiece
from zsaq import launch
from zsaq.train.loop import Loop, processes
loop = Loop(processes())
launch.run(bert(wordpiece()), "w4a8", sys.argv[1], loop=loop, method="llm-qat", tokenizer=wordpiece(),
           generator=(opt(bpe()), bpe()), steps=2, score=lambda _: 1.0, baselines=("rtn",), license="mit")
loop.accelerator.end_training()
print("ended", loop.accelerator.process_index)
"""


@pytest.mark.slow
def test_one_of_two_processes_writes_and_both_end(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(CODE)
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(tmp_path / "job.py")]
    done = subprocess.run(
        [sys.executable, *words, str(tmp_path / "out")], env=os.environ | {"PYTHONPATH": paths}, text=True,
        capture_output=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(line for line in done.stdout.splitlines() if line.startswith("ended")) == ["ended 0", "ended 1"]
    assert done.stderr.count("llm-qat on a BertForSequenceClassification") == 1
    results = zsaq.Results.read(tmp_path / "out")
    assert zsaq.load(tmp_path / "out")
    assert results.machine["processes"] == 2 and [row.name for row in results.rows] == ["teacher", "rtn", "llm-qat"]
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("job.py", "out")] == []
