"""Where images come from: pixels, latents, generators."""
