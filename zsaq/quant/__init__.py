"""What a number is: configurations, grids, ranges, quantized layers, and how they are packed."""
