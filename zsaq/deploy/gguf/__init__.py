"""GGUF, the file of llama.cpp: the same codes in its own types."""
