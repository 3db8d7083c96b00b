"""A checkpoint quantized block by block from the disk, in the memory of one block."""
