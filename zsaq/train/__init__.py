"""How a model learns: objectives, optimizers, synthesis, the one trainer; GPTQ and block reconstruction."""
