"""The tables: several methods, one teacher, several bits and seeds, one budget; last iterate, mean and spread.

    python recipes/compare.py classifier --teacher DIR --task sst2 --data_dir DIR --split validation+test \\
        --generator DIR --bits w2a8 w4a8 --seeds 0 1 2 --output_dir outputs/sst2
    python recipes/compare.py causal --teacher DIR --text FILE --real_text FILE --bits w4a8 --output_dir outputs/s

Every finished run is a line of `runs.jsonl`, and a run that stands there is not repeated: stop and go on at will, or
let two processes share the work by --bits or --methods. `table.md` and `table.csv` are made anew after each run.
"""

import argparse
import json
import os
import resource
import time
from pathlib import Path

from accelerate.utils import set_seed
from job import Job, causal, classifier, embedded
from methods import METHODS, Budget
from tables import COLUMNS, table

from zsaq import Loop, QuantConfig
from zsaq.train.trainer import processes


def run(job: Job, method: str, bits: str, seed: int, budget: Budget, loop: Loop) -> dict:
    set_seed(seed)
    begin = time.perf_counter()
    student = METHODS[method](job, QuantConfig.parse(bits), budget, seed, loop)
    seconds = time.perf_counter() - begin
    told = {"bits": bits, "method": method, "seed": seed, "seconds": round(seconds, 1), **job.measure(student)}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return told | {"budget": vars(budget), "job": job.name, "peak_gib": round(peak, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["embedded", "classifier", "causal"])
    parser.add_argument("--teacher")
    parser.add_argument("--task")
    parser.add_argument("--data_dir")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--text", help="causal: what the perplexity is measured on")
    parser.add_argument("--real_text", help="causal: the oracle's text")
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--max_windows", type=int)
    parser.add_argument("--separator")
    parser.add_argument("--generator")
    parser.add_argument("--bridge", choices=["auto", "same", "vocabulary", "representation"], default="auto")
    parser.add_argument(
        "--style", type=json.loads, default={}, help='the text_generator\'s options as JSON: {"fluency": 0}'
    )
    parser.add_argument("--bits", nargs="+", default=["w2a8"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--output_dir", required=True)
    default = Budget()
    parser.add_argument("--steps", type=int, default=default.steps)
    parser.add_argument("--warm", type=int, default=default.warm)
    parser.add_argument("--lr", type=float, default=default.lr)
    parser.add_argument("--hidden", type=float, default=default.hidden)
    parser.add_argument("--rho", type=float, default=default.rho)
    parser.add_argument("--ratio", type=int, nargs=2, default=default.ratio, help="student steps : climbs")
    parser.add_argument("--generator_lr", type=float, default=default.generator_lr)
    args = parser.parse_args()
    accelerator = processes()
    if args.kind == "embedded":
        job = embedded(args.generator)
    elif args.kind == "classifier":
        job = classifier(args.teacher, args.task, args.data_dir, args.generator, args.split, accelerator)
    else:
        limits = (args.window, args.max_windows, args.separator)
        job = causal(args.teacher, args.text, *limits, args.generator, args.real_text, accelerator)
    job.bridge, job.style = args.bridge, job.style | args.style
    budget = Budget(
        args.steps, args.warm, args.lr, args.hidden, args.rho, (args.ratio[0], args.ratio[1]), args.generator_lr
    )  # fmt: skip
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "runs.jsonl"
    log.touch()
    done = {(r["bits"], r["method"], r["seed"]) for r in map(json.loads, log.read_text().splitlines())}
    accelerator.wait_for_everyone()  # before the first writes
    for bits in args.bits:
        for seed in args.seeds:
            for method in args.methods:
                rounded = method.startswith("rtn") and any(each[:2] == (bits, method) for each in done)
                if rounded or (bits, method, seed) in done:
                    continue
                done.add((bits, method, seed))
                loop = Loop(accelerator, folder=folder / "steps" / f"{bits}-{method}-{seed}", every=50)
                told = run(job, method, bits, seed, budget, loop)
                if accelerator.is_main_process:
                    with log.open("a") as file:
                        file.write(json.dumps(told) + os.linesep)
                    table(folder)
                    print(
                        json.dumps({k: told[k] for k in ("bits", "method", "seed", *COLUMNS) if k in told}), flush=True
                    )


if __name__ == "__main__":
    main()
