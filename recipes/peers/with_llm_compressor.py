"""llm-compressor, calibrated with a corpus of `zsaq synthesize`.

It needs `pip install llmcompressor` and nothing of zsaq.

    python recipes/peers/with_llm_compressor.py MODEL CORPUS OUTPUT_DIR
"""

import argparse


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "corpus", "output_dir"):
        parser.add_argument(name)
    parser.add_argument("--seqlen", type=int, default=128)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--group", type=int, default=128, help="inputs that share a scale")
    args = parser.parse_args()

    from datasets import load_dataset
    from llmcompressor import oneshot  # pyright: ignore[reportMissingImports]
    from llmcompressor.modifiers.gptq import GPTQModifier  # pyright: ignore[reportMissingImports]

    weights = {"num_bits": 4, "strategy": "group", "group_size": args.group}
    oneshot(
        model=args.model,
        dataset=load_dataset(args.corpus, split="train"),  # a name would have to be one that it knows
        recipe=GPTQModifier(config_groups={"linear": {"targets": ["Linear"], "weights": weights}}, ignore=["lm_head"]),
        max_seq_length=args.seqlen,
        num_calibration_samples=args.samples,
        output_dir=args.output_dir,
    )


if __name__ == "__main__":
    main()
