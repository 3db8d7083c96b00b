"""The linear layer that answers a classifier's logits: of a plain module it is the one that is seen to do so."""

import torch
from torch import nn

from zsaq.quant.heads import heads
from zsaq.train.pair import Capture
from zsaq.train.randomness import generator
from zsaq.vision.classifier import Classifier, answered_as, class_name, classifier
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.models import shown_spec


def head(model: nn.Module, spec: ImageSpec | None = None) -> nn.Linear:
    """The layer that answers the logits. Raises ValueError unless it is one linear layer. `spec`: what a plain module
    is shown, by default 64 x 64 pixels."""
    found = linear_heads(model, spec)
    if len(found) != 1:
        raise ValueError(f"{class_name(model)} has {len(found)} linear heads; give a classifier that ends in one")
    return found[0]


def has_head(model: nn.Module, spec: ImageSpec | None = None) -> bool:
    """Whether one linear layer answers the logits. `spec`: as for `head`."""
    return len(linear_heads(model, spec)) == 1


def linear_heads(model: nn.Module, spec: ImageSpec | None = None) -> list[nn.Linear]:
    """Linear layers in the heads of a transformers model. Of a plain module those whose output is its answer to an
    image of noise; failing that, if it is the last layer, the only one, or those of as many outputs: a softmax, or a
    choice among the classes, stands behind. Raises ValueError for a net that cannot take the image."""
    plain, linears = classifier(model), [m for m in model.modules() if isinstance(m, nn.Linear)]
    if not isinstance(plain, Classifier) or not linears:
        found = heads(model)
        return [m for m in linears if m in found]
    spec, layer = shown_spec(model, spec), nn.Linear | nn.Conv2d
    capture = Capture("teacher", lambda _, module: isinstance(module, layer))
    noise = torch.randn(1, spec.channels, spec.size, spec.size, generator=generator(0))
    out = answered_as(plain, spec, (capture,), noise)
    seen, answer = out.seen[capture], out.answer
    if itself := {m for m, value in seen if isinstance(m, nn.Linear) and torch.equal(value.float(), answer)}:
        return [m for m in linears if m in itself]
    last = {m for m, _ in seen if isinstance(m, nn.Linear)}
    if len(last) > 1:
        last = {m for m in last if m.out_features == answer.shape[-1]}
    return [m for m in linears if m in last] if seen and seen[-1][0] in last else []
