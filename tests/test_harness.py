"""lm-evaluation-harness on a saved student, with a task of local data."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import zsaq
from language_toys import REAL, bpe, opt
from zsaq.quant.config import QuantConfig
from zsaq.quant.model import quantize_model

TASK = """task: toy
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: perplexity
  - metric: acc
"""


def evaluated(folder: Path, tasks: Path, out: Path) -> dict[str, float]:
    command = [
        *(sys.executable, "-m", "zsaq.eval.harness", "--model", "hf", "--tasks", "toy", "--device", "cpu"),
        *("--model_args", f"pretrained={folder},dtype=float32", "--include_path", str(tasks)),
        *("--output_path", str(out), "--batch_size", "4"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = out.rglob("results*.json")
    return json.loads(path.read_text())["results"]["toy"]


@pytest.mark.slow
def test_a_student_scores_as_itself_and_not_as_a_random_model(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    tokenizer = bpe()
    student = quantize_model(opt(tokenizer), QuantConfig.parse("w4a16e8"))
    zsaq.save(student, tmp_path / "student")
    tokenizer.save_pretrained(tmp_path / "student")
    data = tmp_path / "toy.jsonl"
    rows = [{"question": row.rsplit(" ", 1)[0], "answer": " " + row.rsplit(" ", 1)[1]} for row in REAL[:4]]
    data.write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "toy.yaml").write_text(TASK.format(data=data))
    scores = evaluated(tmp_path / "student", tmp_path / "tasks", tmp_path / "out")
    loaded, losses = AutoModelForCausalLM.from_pretrained(tmp_path / "student").eval(), []
    for row in rows:
        asked, answer = (tokenizer(row[key], add_special_tokens=False)["input_ids"] for key in ("question", "answer"))
        with torch.no_grad():
            log_p = loaded(input_ids=torch.tensor([asked + answer])).logits[0].log_softmax(-1)
        places = range(len(asked) - 1, len(asked) + len(answer) - 1)
        losses.append(-sum(float(log_p[place, token]) for place, token in zip(places, answer, strict=True)))
    expected = float(torch.tensor(losses).mean().exp())
    assert scores["perplexity,none"] == pytest.approx(expected, rel=1e-3)


def test_without_it_the_line_says_what_to_install() -> None:
    code = "import sys; sys.modules['lm_eval'] = None; from zsaq.eval.harness import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 3 and "pip install lm-eval" in done.stderr and "Traceback" not in done.stderr
