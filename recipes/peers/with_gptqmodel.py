"""GPTQModel, calibrated with a corpus of `zsaq synthesize`.

It needs `pip install gptqmodel` and nothing of zsaq.

    python recipes/peers/with_gptqmodel.py MODEL CORPUS OUTPUT_DIR
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
    from gptqmodel import GPTQConfig, GPTQModel  # pyright: ignore[reportMissingImports]
    from transformers import AutoTokenizer

    # It drops texts of up to 10 tokens, so the texts are joined.
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    tokens = tokenizer("\n\n".join(load_dataset(args.corpus, split="train")["text"]))["input_ids"]
    pieces = [tokens[start : start + args.seqlen] for start in range(0, len(tokens), args.seqlen)][: args.samples]
    model = GPTQModel.load(args.model, GPTQConfig(bits=4, group_size=args.group))
    model.quantize([{"input_ids": piece, "attention_mask": [1] * len(piece)} for piece in pieces])
    model.save(args.output_dir)


if __name__ == "__main__":
    main()
