"""What a language model loses, a row for each way to quantize it: perplexity, KL to the model, bits, seconds, memory.

    python -m recipes.benchmarks.language_models FOLDER --rows "rtn:w4a16g32,gptq:w4a16g32,hqq:4g64" --text TEST.txt

FOLDER: a causal language model. A row is a method of zsaq and a configuration, a peer of `language_peers.py` and its
own (`hqq:4g64`, `nf4:64`, `auto-round:4g32`, `gguf:FILE`, where its package is installed), `saved:FOLDER` (a
student made before) or `float:16`. Options of zsaq's methods follow as they do on the command line (`--calibration 8`).

Perplexity is on the first windows of TEST; KL (model to student, nats a token) on the same windows and on text that the
model wrote itself: --chat FILE, safetensors with `ids` [N, L] and `mask` [N, L] (the tokens that count), or, without,
text from its begin token, written once with a seed of its own. Nothing here is read by a method, but --real by rows
that end so. Bits a weight count everything: 8 times the bytes of the saved weights over the parameters; peers' are
counted as if packed without a gap, and a table that they leave in 16 bits is put at 8 for all alike (`--table 16`
leaves it). Each row is made in a process of its own: its peak is the resident memory above imports. Rows are kept in
--output_dir and not repeated; table.md and rows.jsonl are what it writes.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final, final

from recipes.benchmarks.resident import resident
from zsaq.script import natural, positive, told

ROWS = 64  # of the text that the model writes itself
CHAT_SEED, OWN_SEED = 1000, 7  # of the text that is scored on, and of the text that peers calibrate on
REAL: Final = 1000  # characters of a real text: more than a row holds
MARK: Final = "row: "


@final
class Making:
    """What a row is made of, and what it took from `begin` to `end`."""

    def __init__(self, args: argparse.Namespace, options: list[str]) -> None:
        self.args, self.options = args, options
        self.before, self.began, self.facts = 0.0, 0.0, dict[str, float]()

    def begin(self) -> None:
        """Everything is imported."""
        self.before, self.began = resident(), time.process_time()

    def end(self) -> None:
        self.facts["seconds"] = round(time.process_time() - self.began, 1)
        self.facts["peak_mb"] = round(resident() - self.before)

    def teacher(self) -> Any:
        from zsaq.io.teacher import load_teacher

        return load_teacher(self.args.model).float().requires_grad_(False)

    def own(self) -> Any:
        """Ids [N, L] that the model wrote itself, for peers that calibrate."""
        return written(self.args, OWN_SEED)[0]


def written(args: argparse.Namespace, seed: int) -> tuple[Any, Any]:
    """Ids and mask [ROWS, --tokens] that the model wrote itself from its begin token; made once, then read."""
    import torch
    from safetensors.torch import load_file, save_file

    from zsaq.io.readers import tokenizer_of
    from zsaq.io.teacher import load_teacher
    from zsaq.language.job import TextJob

    path = args.output_dir / f"{Path(args.model).name}-{seed}.safetensors"
    if not path.exists():
        job = TextJob.of(load_teacher(args.model).float(), tokenizer_of(args.model), max_length=args.tokens)
        job.batch_size, job.style = ROWS, {"refresh": 1}
        batch = next(iter(job.text(seed)))
        save_file({"ids": batch["input_ids"], "mask": batch["attention_mask"].bool()}, path)
    file = load_file(path)
    return file["ids"], file["mask"].to(torch.bool)


def students(name: str, config: str, making: Making) -> tuple[Any, float]:
    """A row of zsaq, as it comes back from the disk, and its bits."""
    import torch

    import zsaq
    from zsaq import script
    from zsaq.eval.reading import read_text
    from zsaq.io.saving import weight_bytes

    args, real = making.args, None
    if name.endswith("-real"):
        text = read_text(args.real)
        real = [text[start : start + REAL] for start in range(0, len(text) - REAL, REAL)]
    making.begin()
    student = zsaq.quantize(
        args.model, config, method=name, seed=args.seed, real=real and (lambda: real),
        **script.options_of(making.options),
    )  # fmt: skip
    making.end()
    with tempfile.TemporaryDirectory() as folder:
        student.save_pretrained(Path(folder) / "student")
        return zsaq.load(Path(folder) / "student", dtype=torch.float32), 8.0 * weight_bytes(Path(folder) / "student")


def made(row: str, making: Making) -> tuple[Any, float]:
    """The student of a row in floats or packed, and the bits of all its weights."""
    from recipes.benchmarks.language_peers import PEERS, unchanged

    name, _, config = row.partition(":")
    if name == "float":
        making.begin()
        model = making.teacher()
        making.end()
        return model, float(config or 16) * sum(p.numel() for p in model.parameters())
    if name == "saved":
        import torch

        import zsaq
        from zsaq.io.saving import weight_bytes

        making.begin()
        model = zsaq.load(config, dtype=torch.float32)
        making.end()
        return model, 8.0 * weight_bytes(Path(config))
    if name not in PEERS:
        return students(name, config, making)
    model, bits = PEERS[name](making, config)
    making.end()
    return model, bits + unchanged(model, making.args.table)


def measure(args: argparse.Namespace, row: str, options: list[str]) -> dict[str, Any]:
    """The facts of a row."""
    import torch
    from safetensors.torch import load_file

    from recipes.benchmarks.language_scores import compared, recorded
    from zsaq.eval.perplexity import tokenize
    from zsaq.eval.pretrained import tokenizer_for
    from zsaq.eval.reading import read_text

    making = Making(args, options)
    student, bits = made(row, making)
    teacher = making.teacher()
    keep = recorded(teacher, args.output_dir / f"{Path(args.model).name}.safetensors")
    count = sum(parameter.numel() for parameter in teacher.parameters())
    ids = tokenize(tokenizer_for(teacher, args.model), read_text(args.text))
    if len(ids) < args.window * args.windows:
        raise ValueError(f"{args.text} fills {len(ids) // args.window} windows of {args.window} tokens: give --windows")
    windows = ids[: args.window * args.windows].view(args.windows, args.window)
    loss, kl_wiki = compared(student.eval(), teacher, windows, torch.ones_like(windows, dtype=torch.bool))
    chat = load_file(args.chat) if args.chat else dict(zip(("ids", "mask"), written(args, CHAT_SEED), strict=True))
    _, kl_chat = compared(student, teacher, chat["ids"], chat["mask"])
    keep()
    name, _, config = row.partition(":")
    return {
        "model": Path(args.model).name, "method": name, "config": " ".join([config, *options]),
        "bits_per_weight": round(bits / count, 3), "ppl": round(math.exp(loss), 3), "kl_wiki": round(kl_wiki, 5),
        "kl_chat": round(kl_chat, 5), **making.facts, "note": args.note,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("model")
    parser.add_argument("--rows", required=True, help="method:config, with commas")
    parser.add_argument("--text", required=True, type=Path, help="the test's text, UTF-8")
    parser.add_argument("--chat", type=Path)
    parser.add_argument("--real", type=Path, help="real text, UTF-8, for rows that end in -real")
    parser.add_argument("--windows", type=positive, default=40)
    parser.add_argument("--window", type=positive, default=512)
    parser.add_argument("--tokens", type=positive, default=128, help="of a row of the model's own text")
    parser.add_argument("--table", type=int, choices=(8, 16), default=8)
    parser.add_argument("--seed", type=natural, default=0)
    parser.add_argument("--note", default="")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/language_models"))
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)  # the process of a row
    args, options = parser.parse_known_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    if args.one:
        print(MARK + json.dumps(measure(args, args.rows, options)))
        return
    kept, lines = args.output_dir / "rows.jsonl", list[dict[str, Any]]()
    if kept.exists():
        lines = [json.loads(line) for line in kept.read_text().splitlines()]
    lost = list[str]()
    for row in args.rows.split(","):
        key = {"method": row.partition(":")[0], "config": " ".join([row.partition(":")[2], *options])}
        if any(line.items() >= (key | {"model": Path(args.model).name, "note": args.note}).items() for line in lines):
            continue
        command = [sys.executable, "-m", "recipes.benchmarks.language_models", *sys.argv[1:], "--rows", row, "--one"]
        places = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=False, env=os.environ | {"PYTHONPATH": places}
        )
        last = (done.stdout.splitlines() or [""])[-1]
        if done.returncode or not last.startswith(MARK):
            lost.append(row)
            continue
        lines.append(json.loads(last.removeprefix(MARK)))
        with kept.open("a") as file:
            file.write(json.dumps(lines[-1]) + "\n")
        print(last, flush=True)
    from zsaq.report.table import Table

    table = Table(lines).to_markdown()
    (args.output_dir / "table.md").write_text(table + "\n")
    print(table)
    if lost:
        raise ValueError(f"no row of {', '.join(lost)}: what stood in the way is told above")


if __name__ == "__main__":
    with told():
        main()
