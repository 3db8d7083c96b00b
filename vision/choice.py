"""Which methods suit a teacher, and which one measured best for it."""

from torch import nn

from zsaq.method import Method
from zsaq.quant.kinds import kind_of
from zsaq.train.logging import say
from zsaq.train.synthesis import process_index
from zsaq.vision.image_spec import ImageSpec
from zsaq.vision.methods import METHODS
from zsaq.vision.models import class_name, classifier, has_attentions, has_batch_norms
from zsaq.vision.presets import calls, has_relus, mostly_relus
from zsaq.vision.rows import NEEDS


def suits(teacher: nn.Module, spec: ImageSpec | None = None) -> list[str]:
    """Names of the methods whose needs the teacher meets, in the order of the table. `spec`: what a plain module is
    shown to find its head, by default 64 x 64 pixels."""
    met = {needs: meets(teacher, spec) for needs, meets in NEEDS.items()}
    return [name for name, method in METHODS.items() if met[method.needs]]


def check_needs(method: Method, teacher: nn.Module, spec: ImageSpec | None = None) -> None:
    """Raises ValueError for a teacher that lacks what the method needs, with the methods that do suit it."""
    if not NEEDS[method.needs](teacher, spec):
        raise ValueError(
            f"{class_name(classifier(teacher))} does not suit {method.name}, which needs {method.needs}; take one of "
            f"{', '.join(suits(teacher, spec))}"
        )


def find(name: str, teacher: nn.Module, spec: ImageSpec | None = None) -> Method:
    """The row of that name. Raises ValueError for a name that is not in the table, and as `check_needs` does."""
    if name not in METHODS:
        kind = class_name(classifier(teacher))
        raise ValueError(f"method is {name!r}; for {kind} give one of {', '.join(suits(teacher, spec))}")
    check_needs(METHODS[name], teacher, spec)
    return METHODS[name]


def preset_for(method: Method, teacher: nn.Module, spec: ImageSpec | None = None) -> str:
    """The method's own preset; psaq instead of uniform for a teacher whose layers are not mostly followed by ReLUs,
    whose outputs uniform rounds. `spec`: what a plain module is shown, by default 64 x 64 pixels."""
    assert method.preset is not None
    return "psaq" if method.preset == "uniform" and not mostly_relus(teacher, spec) else method.preset


def tell_floats(preset: str, teacher: nn.Module, spec: ImageSpec) -> None:
    """Says how many layers read floats under a preset that was asked for, where they are the most."""
    if preset == "uniform" and has_relus(teacher) and not mostly_relus(teacher, spec) and process_index() == 0:
        relus, layers = calls(teacher, spec)
        say(
            f"preset uniform rounds what ReLUs put out, {relus} beside the {layers} layers of {class_name(teacher)}: "
            f"about {layers - relus} read floats; preset brecq or psaq rounds what goes into layers"
        )


def auto(teacher: nn.Module, bits: tuple[int, int]) -> str:
    """The method that measured best for this kind of teacher and these bits of weights and activations.

    A rule from our own tables (docs/results.md, recipes/LOG.md), never a guess from scores at run time: a net with
    BatchNorm is fitted in one pass, on images that match its statistics, which at 8 bits too is nearer than ranges
    alone (ResNet-20 W8A8: KL .0004, ZeroQ .023); a vision transformer gets ranges of PSAQ-ViT's images at 8 bits of
    both, and learns its rounding block by block on them below that. Others are fitted in one pass on pink images: none
    of them was measured, but a vision transformer on digits and a toy ConvNeXt are nearer to their teachers by it, at
    all bits, than with the ranges of noise. Layers that share a weight, which neither a pass nor learning can round for
    both, are rounded to nearest: `zeroq`, `psaq`, or the ranges of noise.
    """
    apart = not shares_weights(teacher)
    if has_batch_norms(teacher):
        return "onepass" if apart else "zeroq"
    if has_attentions(teacher):
        return "psaq-learned" if apart and min(bits) < 8 else "psaq"
    return "onepass-pink" if apart else "rtn-noise"


def shares_weights(teacher: nn.Module) -> bool:
    """Whether two of its layers hold one weight."""
    weights = [id(module.weight) for module in teacher.modules() if kind_of(module) is not None]
    return len(set(weights)) < len(weights)
