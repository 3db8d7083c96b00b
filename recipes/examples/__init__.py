"""Teachers that are trained on the spot or read from a plain state dict: what recipes run on where nothing is given."""
