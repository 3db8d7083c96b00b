"""Data-free quantization of vision models, CNN and ViT; imported as `zsaq.vision`, whatever the folder's place."""

if __name__ != "zsaq.vision":
    # Under a second name every class would exist twice, and isinstance would answer no.
    raise ImportError(f"this package is zsaq.vision, not {__name__}: write `import zsaq.vision`")
