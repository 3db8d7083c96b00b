"""auto-round, calibrated with a corpus of `zsaq synthesize`.

It needs `pip install auto-round` and nothing of zsaq.

    python recipes/peers/with_auto_round.py MODEL CORPUS OUTPUT_DIR
"""

import argparse


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "corpus", "output_dir"):
        parser.add_argument(name)
    parser.add_argument("--seqlen", type=int, default=128)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--group", type=int, default=128, help="inputs that share a scale")
    parser.add_argument("--iters", type=int, default=200)
    args = parser.parse_args()

    import torch
    from auto_round import AutoRound  # pyright: ignore[reportMissingImports]
    from datasets import load_dataset
    from transformers import AutoTokenizer

    # It drops samples below `seqlen` tokens without a word, so the texts are joined.
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    texts = load_dataset(args.corpus, split="train")["text"]
    tokens = tokenizer("\n\n".join(texts), return_tensors="pt")["input_ids"]
    samples = [{"input_ids": piece} for piece in tokens.split(args.seqlen, dim=1)][: args.samples]
    rounder = AutoRound(
        args.model, scheme="W4A16", group_size=args.group, dataset=samples, seqlen=args.seqlen, nsamples=args.samples,
        iters=args.iters, enable_torch_compile=torch.cuda.is_available(),  # on a CPU that takes longer than it saves
    )  # fmt: skip
    rounder.quantize_and_save(args.output_dir, format="auto_round")


if __name__ == "__main__":
    main()
