"""Where the weights of a loaded model's float layers lie: where torch would put them itself."""

from typing import Final

from torch import nn

BYTES: Final = 64  # torch's own alignment on CPUs


def align(model: nn.Module) -> None:
    """Copy matrices in floats, heads above all, that lie elsewhere in a file's map: of a single row torch's product is
    another in its last bit there, and the model would not answer as the student that was saved does."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            continue
        for parameter in module._parameters.values():
            if parameter is not None and parameter.ndim == 2 and parameter.data_ptr() % BYTES:
                parameter.data = parameter.data.clone()
