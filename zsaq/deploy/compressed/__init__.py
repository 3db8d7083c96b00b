"""The layout of compressed-tensors, for stock transformers and vLLM."""
