"""lm-evaluation-harness on students: `python -m zsaq.eval.harness --model hf --model_args pretrained=DIR --tasks ...`.

It is `lm_eval` with all its own options, in a process that has imported zsaq first. Without that transformers does not
know the format, says in one line of its log that it skips the quantization, and stops at the packed weights.
"""

import sys

from zsaq.quant import adapter  # noqa: F401  (registers the format with transformers)


def main() -> None:
    """Exit code 3 where lm-eval is not installed."""
    try:
        from lm_eval.__main__ import cli_evaluate  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        print(f"error: this needs lm-eval ({error}): pip install lm-eval", file=sys.stderr)
        raise SystemExit(3) from None
    cli_evaluate()


if __name__ == "__main__":
    main()
