"""Peak memory and seconds of a checkpoint that is quantized block by block:

python -m recipes.benchmarks.streaming --random /tmp/3b --methods rtn gptq   # random weights in a 3B Llama's shape
python -m recipes.benchmarks.streaming --model path/or/id --methods rtn gptq --rows 32 --tokens 512

Each method runs in a process of its own; its peak is the resident memory above what is resident after the imports. The
text is random tokens, as many rows of as many tokens as asked for, and written by nobody. One JSON object a line.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

import zsaq
from recipes.benchmarks.resident import resident
from zsaq.io.folder import read_config
from zsaq.script import positive, told
from zsaq.stream.quantizing import ROUNDINGS, Rounding
from zsaq.train.pair import Batch

SHAPE = {  # of Llama-3.2-3B
    "vocab_size": 128_256, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28,
    "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}  # fmt: skip
MIB = 2**20


def make(folder: Path, seed: int = 0) -> None:
    """A checkpoint of random bfloat16 weights, a file for each block, in `folder`."""
    config = LlamaConfig(**SHAPE, dtype="bfloat16", architectures=["LlamaForCausalLM"])
    wide, inner = config.hidden_size, config.intermediate_size
    query, keys = (count * SHAPE["head_dim"] for count in (config.num_attention_heads, config.num_key_value_heads))
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    rng = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=rng).mul_(0.02).to(torch.bfloat16)

    ones = torch.ones(wide, dtype=torch.bfloat16)
    parts = [{"model.embed_tokens.weight": random(config.vocab_size, wide), "model.norm.weight": ones}]
    places: dict[str, str] = {}
    for number in range(config.num_hidden_layers + 1):
        if number:
            shapes = {
                "self_attn.q_proj": (query, wide), "self_attn.k_proj": (keys, wide), "self_attn.v_proj": (keys, wide),
                "self_attn.o_proj": (wide, query), "mlp.gate_proj": (inner, wide), "mlp.up_proj": (inner, wide),
                "mlp.down_proj": (wide, inner),
            }  # fmt: skip
            own = f"model.layers.{number - 1}"
            parts = [{f"{own}.{name}.weight": random(*shape) for name, shape in shapes.items()}]
            norms = ("input_layernorm", "post_attention_layernorm")
            parts[0] |= {f"{own}.{name}.weight": ones.clone() for name in norms}
        name = f"model-{number + 1:05d}-of-{config.num_hidden_layers + 1:05d}.safetensors"
        save_file(parts[0], folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(parts[0], name)
    index = {"metadata": {"total_size": sum(path.stat().st_size for path in folder.glob("*.safetensors"))}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index | {"weight_map": places}))


def measure(model: Path, method: Rounding, bits: str, rows: int, tokens: int) -> dict[str, object]:
    """One run in this process."""
    ids = torch.randint(3, int(read_config(model)["vocab_size"]), (rows + 1, tokens))
    size = max(1, 2048 // tokens)
    batches: list[Batch] = [{"input_ids": ids[at : at + size]} for at in range(0, rows, size)]
    before, began = resident(), time.perf_counter()
    with tempfile.TemporaryDirectory(dir=model.parent) as folder:
        options = (
            {"calibration": len(batches), "batches": [*batches, {"input_ids": ids[rows:]}]} if method == "gptq" else {}
        )
        results = zsaq.quantize_files(model, Path(folder) / "out", bits, method=method, **options)
    seconds, files = round(time.perf_counter() - began, 1), results.rows[0].bytes or 0
    peak = resident() - before
    return {
        "model": model.name, "method": method, "bits": bits, "rows": rows, "tokens": tokens, "seconds": seconds,
        "peak_mib": round(peak), "files_mib": round(files / MIB), "share": round(peak * MIB / files, 2),
        "student_mib": round((results.student.bytes or 0) / MIB), **results.student.scores,
    }  # fmt: skip


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = flags.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", type=Path, help="a folder")
    which.add_argument("--random", type=Path, help="where a checkpoint of random weights is made, 6.4 GB, or lies")
    flags.add_argument("--methods", nargs="+", choices=ROUNDINGS, default=list(ROUNDINGS))
    flags.add_argument("--bits", default="w4a16h8g32")
    flags.add_argument("--rows", type=positive, default=8)
    flags.add_argument("--tokens", type=positive, default=128)
    flags.add_argument("--here", action="store_true", help="run the one method in this process")
    args = flags.parse_args()
    model = args.model or args.random
    if args.here:
        print(json.dumps(measure(model, args.methods[0], args.bits, args.rows, args.tokens)), flush=True)
        return
    if not model.is_dir() and args.random is None:
        raise ValueError(f"{model} is no folder: give one with a model, or --random and a new one")
    if not model.is_dir():
        make(model)
    for method in args.methods:
        same = ["--bits", args.bits, "--rows", str(args.rows), "--tokens", str(args.tokens)]
        command = [
            sys.executable,
            "-m",
            "recipes.benchmarks.streaming",
            "--model",
            str(model),
            "--methods",
            method,
            *same,
            "--here",
        ]
        if (done := subprocess.run(command, check=False)).returncode:
            raise SystemExit(done.returncode)


if __name__ == "__main__":
    with told():
        main()
