"""What must be known of an architecture: its blocks, norms, attention contexts, last feature map, head and spec.

The only file of `zsaq.vision` that knows architectures. Modules are found by type (transformers' classes) or by
structure (any other `nn.Module`), never by name, so a student, which is a swapped copy, is found alike. Lists stand in
the order of registration, which in all of these models is the order of execution, but for a shortcut inside its block.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any, final

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers import PreTrainedModel
from transformers.models.convnext.modeling_convnext import ConvNextLayer
from transformers.models.convnextv2.modeling_convnextv2 import ConvNextV2Layer
from transformers.models.efficientnet.modeling_efficientnet import EfficientNetBlock
from transformers.models.mobilenet_v2.modeling_mobilenet_v2 import MobileNetV2InvertedResidual
from transformers.models.regnet.modeling_regnet import RegNetXLayer, RegNetYLayer
from transformers.models.resnet.modeling_resnet import ResNetBasicLayer, ResNetBottleNeckLayer
from transformers.models.swin.modeling_swin import SwinModel

from zsaq.quant.attention import attention_of
from zsaq.train.pair import Capture
from zsaq.vision.classifier import answered_as, class_name, classifier
from zsaq.vision.image_spec import ImageSpec

BLOCK_TYPES = (
    ResNetBasicLayer, ResNetBottleNeckLayer, RegNetXLayer, RegNetYLayer, MobileNetV2InvertedResidual, ConvNextLayer,
    ConvNextV2Layer, EfficientNetBlock,
)  # fmt: skip
NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
Named = list[tuple[str, nn.Module]]


@final
@dataclass(frozen=True)
class At:
    """Where a `Capture` looks: the modules of these names, in a teacher and in its copy, the student."""

    names: tuple[str, ...]

    def __call__(self, name: str, module: nn.Module) -> bool:
        return name in self.names


def spec_of(teacher: nn.Module, size: int | None = None) -> ImageSpec:
    """Classes, channels and image size as a transformers configuration names them.

    `size`: of the images, for configurations that name none (ResNet, RegNet: their image processor knows). Raises
    ValueError for a plain module and for images that are not square.
    """
    if not isinstance(teacher, PreTrainedModel):
        given = "" if size is None else f", and spec is {size!r:.80}"
        raise ValueError(
            f"{class_name(teacher)} has no configuration that tells its images{given}; give ImageSpec(classes, size)"
        )
    if size is not None and type(size) is not int:
        raise ValueError(f"spec is {size!r:.80}; give the side of the images in pixels, or ImageSpec(classes, size)")
    named = vision_config(teacher).get("image_size") if size is None else size
    if named is None:
        raise ValueError(f"the configuration of {class_name(teacher)} names no image size; give spec=SIDE (--size)")
    sides = set(named) if isinstance(named, list | tuple) else {named}
    if len(sides) != 1:
        raise ValueError(f"image_size is {named}; only square images are made, give ImageSpec(...) of one size")
    classes: Any = teacher.config.num_labels
    return ImageSpec(classes, sides.pop(), channels_of(teacher))


def vision_config(teacher: PreTrainedModel) -> dict[str, Any]:
    """What its configuration says of images, also of a classifier of CLIP's or SigLIP's kind."""
    config = teacher.config.to_dict()
    return config.get("vision_config") or config


def channels_of(teacher: nn.Module) -> int:
    """How many channels its images have; 3 where no configuration tells."""
    return vision_config(teacher).get("num_channels", 3) if isinstance(teacher, PreTrainedModel) else 3


def has_batch_norms(model: nn.Module) -> bool:
    """Whether there is a BatchNorm that holds statistics of the training data."""
    return any(isinstance(m, NORMS) and m.running_mean is not None for m in model.modules())


def batch_norms(model: nn.Module) -> list[nn.BatchNorm2d | nn.SyncBatchNorm]:
    """The BatchNorms that hold statistics of the training data. Raises ValueError if there is none."""
    norms = [m for m in model.modules() if isinstance(m, NORMS) and m.running_mean is not None]
    if not norms:
        raise ValueError(
            f"{class_name(model)} has no BatchNorm with running statistics, which this method reads; take a ResNet, "
            "RegNet, MobileNetV2 or another net with BatchNorm, or a method for transformers (PSAQ-ViT)"
        )
    return norms


def layers(model: nn.Module) -> Named:
    """All convolutions and linear layers that are called: torch's own attention reads its weights past the call."""
    return [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and _called(m)]


def blocks(model: nn.Module) -> Named:
    """What is reconstructed at once, each layer in one block: residual blocks, and layers that stand outside of them.

    Blocks are transformers' block types, and what holds one attention and layers beside it. An addition cannot be seen
    from outside, so elsewhere a block is a module that is no mere container, whose type stands in the model at least
    twice, and that holds at least two convolutions, one of them wider than a pixel; of nested ones the innermost.
    Raises ValueError if there is no layer.
    """
    named = _blocks(model, "", Counter(type(m) for m in model.modules()))
    if not named:
        raise ValueError(f"{class_name(model)} holds no convolution or linear layer; give a classifier of images")
    return named


def feature_places(model: nn.Module) -> At:
    """Where features are compared (He et al. style: HAST's channel attention looks here).

    For each residual block with BatchNorm the output of its last, before the shortcut is added, a BatchNorm of the
    shortcut excepted; other blocks' own outputs. In a net without residual blocks, its BatchNorms. Raises ValueError
    without any of them.
    """
    places = [_branch_end(name, block) for name, block in blocks(model) if not isinstance(block, nn.Conv2d | nn.Linear)]
    places = places or [name for name, module in model.named_modules() if isinstance(module, NORMS)]
    if not places:
        raise ValueError(f"{class_name(model)} has neither residual blocks nor BatchNorm; name the modules to compare")
    return At(tuple(places))


def has_attentions(model: nn.Module) -> bool:
    """Whether it is a vision transformer whose attentions are known, as transformers builds them."""
    return any(attention_of(m) for m in model.modules())


def attentions(model: nn.Module) -> dict[nn.Module, int]:
    """Output projections of the attentions, with their numbers of heads; their input [B, T, heads * d] is the context.

    Swin: [B * windows, T, heads * d]. Raises ValueError for a model without such attentions.
    """
    found = [each for m in model.modules() if (each := attention_of(m))]
    if not found:
        raise ValueError(f"{class_name(model)} has no attention that is known; take ViT, DeiT, Swin, DINOv2 or CLIP")
    return dict(found)


def last_feature_map(model: nn.Module, spec: ImageSpec | None = None) -> At:
    """Where activation maps are taken (Grad-CAM), never on a map of one pixel.

    The last convolution (of no shortcut) whose output has H * W > 1: a map [B, C, H, W]. ConvNeXt: its last block. ViT
    and its like: the norm before the last attention, [B, special + patches, d], because with a head on the class token
    the gradient at the patches behind it is zero. Swin: the last norm, [B, patches, d]. `spec`: what a plain module is
    shown to measure its maps, by default 64 x 64 pixels. Raises ValueError if no map is wider than a pixel.
    """
    modules, last = list(model.named_modules()), blocks(model)
    kinds = ConvNextLayer | ConvNextV2Layer
    wanted = next((m for _, m in reversed(last) if _attends(m) or isinstance(m, kinds)), None)
    if wanted is not None and _attends(wanted):
        wanted = next((m for m in wanted.children() if isinstance(m, nn.LayerNorm)), None)
    wanted = next((m.layernorm for _, m in modules if isinstance(m, SwinModel)), wanted)
    if wanted is None:
        sides = _sides(model, spec)
        shortcuts = {m for _, block in last for s in _shortcuts(block) for m in s.modules()}
        convolutions = [m for _, m in modules if isinstance(m, nn.Conv2d) and m not in shortcuts]
        wanted = next((m for m in reversed(convolutions) if sides.get(m, 1) > 1), None)
    if wanted is None:
        raise ValueError(f"{class_name(model)} has no convolution with a map of several pixels; show larger images")
    return At(tuple(name for name, module in modules if module is wanted))


def _blocks(module: nn.Module, name: str, kinds: Counter[type]) -> Named:
    if isinstance(module, (*BLOCK_TYPES, nn.Conv2d, nn.Linear)) or _attends(module):
        return [(name, module)] if _called(module) else []
    if _is_block(module, kinds) and not any(_is_block(m, kinds) for m in module.modules() if m is not module):
        return [(name, module)]
    children = ((f"{name}.{child}" if name else child, m) for child, m in module.named_children())
    return [block for child, m in children for block in _blocks(m, child, kinds)]


def _is_block(module: nn.Module, kinds: Counter[type]) -> bool:
    convolutions = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    repeated = kinds[type(module)] > 1 and not isinstance(module, CONTAINERS)
    return isinstance(module, BLOCK_TYPES) or (
        repeated and len(convolutions) > 1 and any(max(m.kernel_size) > 1 for m in convolutions)
    )


def _called(module: nn.Module) -> bool:
    return not isinstance(module, NonDynamicallyQuantizableLinear)


def _attends(module: nn.Module) -> bool:
    """Whether it is a transformer's block: one attention, and layers beside it."""
    inner = [m for m in module.children() if attention_of(m)]
    return len(inner) == 1 and len(layers(module)) > len(layers(inner[0]))


def _shortcuts(block: nn.Module) -> list[nn.Module]:
    """Children of a block beside its branch: those with one convolution where another child has them all, or where
    convolutions stand in the block itself."""
    count = {m: sum(isinstance(c, nn.Conv2d) for c in m.modules()) for m in block.children()}
    bare = any(isinstance(m, nn.Conv2d) for m in count)
    whole = any(n > 1 for n in count.values())
    return [m for m, n in count.items() if n == 1 and (whole or bare) and not isinstance(m, nn.Conv2d)]


def _branch_end(name: str, block: nn.Module) -> str:
    shortcut = {m for s in _shortcuts(block) for m in s.modules()}
    norms = [n for n, m in block.named_modules() if isinstance(m, NORMS) and m not in shortcut]
    return f"{name}.{norms[-1]}" if norms else name


def _sides(model: nn.Module, spec: ImageSpec | None) -> dict[nn.Module, int]:
    """The pixels H * W of what each convolution answers to a blank image."""
    if not any(isinstance(m, nn.Conv2d) for m in model.modules()):
        return {}
    spec, capture = shown_spec(model, spec), Capture("teacher", nn.Conv2d)
    seen = answered_as(classifier(model), spec, (capture,)).seen[capture]
    return {module: answer.shape[-2] * answer.shape[-1] for module, answer in seen}


def shown_spec(model: nn.Module, spec: ImageSpec | None) -> ImageSpec:
    """The images that a model is shown to be looked at, where none are given: of 64 pixels if it does not tell."""
    if spec is None and isinstance(model, PreTrainedModel) and "image_size" in model.config.to_dict():
        return spec_of(model)
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    return spec or ImageSpec(1, 64, 3 if first is None else first.in_channels)
