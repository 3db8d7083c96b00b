"""The checkpoint layout of GPTQ, which says nothing of how the codes came about."""
