"""What the papers mean by "W4A4": which tensors are rounded onto which grids, as plain configurations.

Figures are comparable within a preset only, so a result is told with the name of the function that made its
configuration. All ranges of activations are static and per tensor: `zsaq.calibrate` fills them. Biases, norms and what
passes between layers in identity shortcuts stay in floats everywhere.
"""

import re
from collections.abc import Collection
from dataclasses import replace

from torch import nn

from zsaq.quant.config import Grid, QuantConfig
from zsaq.quant.heads import heads
from zsaq.quant.kinds import kind_of
from zsaq.quant.layers import ACTIVATIONS
from zsaq.train.pair import Capture
from zsaq.vision.classifier import answered_as, class_name, classifier
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.models import shown_spec

ANY_SPEC = ImageSpec(classes=1, size=224)  # a convolutional net takes any size


def uniform(text: str, model: nn.Module) -> QuantConfig:
    """The preset of GDFQ and all that follow it (Xu et al. 2020, arXiv 2003.03603): the same bits in every layer.

    Weights of every convolution and linear layer, the first and the last too, asymmetric min-max per output channel,
    from the weights as they are at each forward; what every ReLU module puts out, asymmetric. In floats stay the image,
    pooled features before the classifier and linear bottlenecks. Raises ValueError for another text than "w4a4" and
    for a net without layers or without a module of ReLU.
    """
    weights, activations, products = parts(text)
    check_layers(model)
    if not has_relus(model):
        raise ValueError(
            f"the preset uniform rounds what ReLUs put out, and {class_name(model)} has no module of one: give the "
            "preset brecq or psaq, which round what goes into layers"
        )
    if products is not None:
        raise ValueError(
            f"{text!r}: the preset uniform is for nets of ReLUs, not attention: leave p{products.bits} off"
        )
    plain = QuantConfig(
        Grid(weights, symmetric=False),
        activation=Grid(activations, symmetric=False, per="tensor"),
        ranges="minmax",
    )
    return replace(plain, rules=tuple((name, plain) for name in of_heads(model, ACTIVATIONS)))


def brecq(text: str, model: nn.Module, spec: ImageSpec = ANY_SPEC) -> QuantConfig:
    """The preset of BRECQ and Genie (Li et al. 2021, arXiv 2102.05426): inputs of layers, 8 bits at both ends.

    Asymmetric weights with searched scales per output channel and asymmetric inputs; 8 bits for the weights of the
    first layer, whose input stays in floats, for the input of the second, with whatever else reads that tensor, and
    for weights and input of the last. "w4a4p8" also rounds what the products of a transformer's attentions take, to 8
    bits. The order is that of one forward pass on an empty image of `spec`, which a
    model of fixed size must be given unless its images are 224 x 224; a plain module's layers are named as
    `zsaq.quantize` names them, with `module.` before. The papers also round identity shortcuts, which
    no layer reads: figures of nets that have them differ. Raises ValueError for another text than "w4a4" and
    for a net without layers.
    """
    weights, inputs, products = parts(text)
    model = classifier(model)
    check_layers(model)
    capture = Capture("teacher", lambda _, module: kind_of(module) is not None, "input")
    seen = answered_as(model, spec, (capture,)).seen[capture]
    names = {module: name for name, module in model.named_modules()}
    first, last = names[seen[0][0]], names[seen[-1][0]]
    second = [names[module] for module, tensor in seen if len(seen) > 1 and tensor is seen[1][1]]

    def layer(of_weights: int, of_input: int | None) -> QuantConfig:
        grid = None if of_input is None else Grid(of_input, symmetric=False, per="tensor")
        return QuantConfig(Grid(of_weights, symmetric=False), grid)

    every = dict.fromkeys(of_heads(model), layer(weights, inputs)) | dict.fromkeys(second, layer(weights, 8))
    rules = tuple((every | {last: layer(8, 8), first: layer(8, None)}).items())
    return replace(layer(weights, inputs), rules=rules, attention=products)


def psaq(text: str, model: nn.Module) -> QuantConfig:
    """The preset of PSAQ-ViT for transformers (Li et al. 2022, arXiv 2203.02250), as far as layers reach.

    Weights of every layer, patch embedding and head too, symmetric min-max per output channel (scale max |w| /
    (2^(n-1) - 1); theirs is max |w| / (2^(n-1) - 0.5)); inputs of these layers, the image too, asymmetric min-max. Its
    other roundings stand between layers and are not done here: attention scores, sums, what layers put out. "w8a8p8"
    also rounds what the two products of each attention take, query, key, probabilities and value, to 8 bits, asymmetric
    min-max. Raises ValueError for another text than these and for a net without layers.
    """
    weights, inputs, products = parts(text)
    check_layers(model)
    plain = QuantConfig(Grid(weights), Grid(inputs, symmetric=False, per="tensor"), ranges="minmax")
    return replace(plain, rules=tuple((name, plain) for name in of_heads(model)), attention=products)


def preset_config(text: str, preset: str, model: nn.Module, spec: ImageSpec = ANY_SPEC) -> QuantConfig:
    """The configuration that a preset gives for a text as "w4a4". Raises ValueError for a preset that does not exist,
    and as the presets do."""
    check_preset(preset)
    if preset == "brecq":
        return brecq(text, model, spec)
    return psaq(text, model) if preset == "psaq" else uniform(text, model)


def check_preset(preset: str) -> None:
    """Raises ValueError for a preset that does not exist."""
    if preset not in ("brecq", "psaq", "uniform"):
        raise ValueError(f"preset is {preset!r}; give brecq, psaq or uniform")


def check_layers(model: nn.Module) -> None:
    """Raises ValueError for a net without a layer."""
    if not any(kind_of(module) is not None for module in model.modules()):
        raise ValueError(f"{class_name(model)} has no layer to round; give a net with a Conv2d or Linear")


def has_relus(model: nn.Module) -> bool:
    return any(type(module) in ACTIVATIONS for module in model.modules())


def calls(model: nn.Module, spec: ImageSpec | None = None) -> tuple[int, int]:
    """How often modules of ReLU and layers are called for one image. `spec`: what a plain module is shown, by default
    64 x 64 pixels."""
    model, spec = classifier(model), shown_spec(model, spec)
    capture = Capture("teacher", lambda _, m: type(m) in ACTIVATIONS or kind_of(m) is not None, "input")
    seen = answered_as(model, spec, (capture,)).seen[capture]
    relus = sum(type(module) in ACTIVATIONS for module, _ in seen)
    return relus, len(seen) - relus


def mostly_relus(model: nn.Module, spec: ImageSpec | None = None) -> bool:
    """Whether there is a ReLU for every second layer at least, as in MobileNetV2; in a net of SiLUs with one in each
    squeeze there is one for five. `spec`: as for `calls`."""
    if not has_relus(model):
        return False
    relus, layers = calls(model, spec)
    return 2 * relus >= layers


def bits(text: str) -> tuple[int, int]:
    """Of weights and activations. Raises ValueError for what is no text of a preset."""
    return parts(text)[:2]


def parts(text: str) -> tuple[int, int, Grid | None]:
    """The bits of weights and activations, and the grid of what the products of attention take."""
    match = re.fullmatch(r"w([2-8])a([2-8])(?:p([2-8]))?", str(text).strip().lower())
    if not match:
        raise ValueError(
            f"{text!r} is no text of a preset; the form is w<bits>a<bits> with 2 to 8 bits, as in w4a4, or, where the "
            "products of attention are rounded too, w<bits>a<bits>p<bits>"
        )
    grid = None if match[3] is None else Grid(int(match[3]), symmetric=False, per="tensor")
    return int(match[1]), int(match[2]), grid


def bits_of(config: str | QuantConfig) -> tuple[int, int]:
    """Of weights and activations, of a text of a preset or a configuration; 16 for floats."""
    if not isinstance(config, QuantConfig):
        return bits(config)
    activation = config.activation or config.input
    return (16 if config.weight is None else config.weight.bits), (16 if activation is None else activation.bits)


def of_heads(model: nn.Module, kinds: Collection[type] = ()) -> list[str]:
    """The layers of a transformers model's heads, and its modules of other `kinds` there, which only rules reach; none
    in a plain module."""
    outside = heads(model)
    modules = [(name, module) for name, module in model.named_modules() if module in outside]
    return [name for name, module in modules if kind_of(module) is not None or type(module) in kinds]
