"""The vision tables: several methods, one teacher, several bits and seeds, one budget; last iterate, mean and spread.

    python recipes/vision_compare.py digits-resnet --methods rtn-noise zeroq --bits w4a4 --output_dir outputs/digits
    python recipes/vision_compare.py cifar --weights resnet20.safetensors --test test.parquet --real train.parquet \\
        --preset uniform --bits w4a4 w3a3 --methods zeroq gdfq synq oracle --seeds 0 1 2 --output_dir outputs/cifar

Every finished run is a line of `runs.jsonl`, and a run that stands there is not repeated. `table.md`, `table.csv` and
`table.png` are made anew after each run.
"""

import argparse
import json
import os
import time
from pathlib import Path

from accelerate.utils import set_seed
from tables import bars, table
from vision_job import VisionJob, cifar, digits, mobilenet
from vision_methods import METHODS, VisionBudget

from zsaq import Loop, QuantConfig
from zsaq.train.logging import SynthesisLog
from zsaq.train.trainer import processes
from zsaq.vision import presets


def config_of(preset: str, bits: str, job: VisionJob) -> QuantConfig:
    if preset == "brecq":
        return presets.brecq(bits, job.teacher, job.spec)
    return {"uniform": presets.uniform, "psaq": presets.psaq}[preset](bits, job.teacher)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=["digits-resnet", "digits-vit", "cifar", "mobilenet"])
    parser.add_argument(
        "--weights", help="cifar, mobilenet: a state dict in safetensors, see recipes/cifar.py, imagenet.py"
    )
    parser.add_argument("--test", nargs="+", default=[], help="cifar, mobilenet: parquet files with test images")
    parser.add_argument("--limit", type=int, help="mobilenet: how many images of each such file, if not all")
    parser.add_argument("--real", help="cifar, mobilenet: a parquet file for the oracle, which is not zero-shot")
    parser.add_argument("--preset", choices=["uniform", "brecq", "psaq"], default="uniform")
    parser.add_argument("--bits", nargs="+", default=["w4a4"])
    parser.add_argument(
        "--methods", nargs="+", required=True, choices=list(METHODS), metavar="METHOD", help=", ".join(METHODS)
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--output_dir", required=True)
    default = VisionBudget()
    for name in ("images", "synthesize", "warmup", "steps", "unit_steps", "batch"):
        parser.add_argument(f"--{name}", type=int, default=vars(default)[name])
    parser.add_argument("--speed", type=float, default=default.speed, help="times the published learning rate")
    args = parser.parse_args()
    accelerator = processes()
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if args.job in ("cifar", "mobilenet"):
        if not args.weights or not args.test:
            parser.error(f"{args.job} needs --weights and --test")
        given = args.weights, args.test, args.real
        job = cifar(*given) if args.job == "cifar" else mobilenet(*given, args.limit)
    else:
        job = digits(args.job.removeprefix("digits-"))
    given = {name: value for name, value in vars(args).items() if name in vars(default)}
    budget = VisionBudget(**given, pictures=folder / "pictures")
    told = {"bits": "", "method": "teacher", "seed": 0, **job.measure(job.teacher)}
    print(json.dumps(told), flush=True)
    log = folder / "runs.jsonl"
    log.touch()
    mine = (job.name, args.preset)
    others = {(r["job"], r["preset"]) for r in map(json.loads, log.read_text().splitlines())} - {mine}
    if others:
        parser.error(f"{folder} holds runs of {sorted(others)}: give another --output_dir")
    done = {(r["bits"], r["method"], r["seed"]) for r in map(json.loads, log.read_text().splitlines())}
    accelerator.wait_for_everyone()  # before the first writes
    for seed in args.seeds:
        for bits in args.bits:
            config = config_of(args.preset, bits, job)
            for method in args.methods:
                if (bits, method, seed) in done:
                    continue
                set_seed(seed)
                begin = time.perf_counter()
                loop = Loop(accelerator, folder=folder / "steps" / f"{bits}-{method}-{seed}", every=100)
                with SynthesisLog(accelerator):
                    student = METHODS[method](job, config, budget, seed, loop)
                seconds = round(time.perf_counter() - begin, 1)
                told = {"bits": bits, "method": method, "seed": seed, "seconds": seconds, **job.measure(student)}
                if accelerator.is_main_process:
                    record = told | {"preset": args.preset, "job": job.name, "budget": vars(args)}
                    with log.open("a") as file:
                        file.write(json.dumps(record) + os.linesep)
                    table(folder)
                    bars(folder)
                    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
