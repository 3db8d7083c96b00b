"""What is decided about a model before it is touched: which modules are quantized how, and why others are not."""

import math
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from zsaq.quant.asked import check_asked
from zsaq.quant.attention import attention_of, rounds, why_not
from zsaq.quant.config import QuantConfig
from zsaq.quant.experts import weighted
from zsaq.quant.heads import heads, outputs, token_tables
from zsaq.quant.kinds import kind_of
from zsaq.quant.layers import ACTIVATIONS, unfit, weight_rows
from zsaq.quant.saved import filled
from zsaq.quant.share import FORMLESS, Share
from zsaq.quant.ties import RULED, Ends


@dataclass(frozen=True)
class Plan:
    """What was decided for each module that holds weights: a configuration, or why it is left alone.

    ReLU modules are among them if the configuration has a grid for activations, and attentions if it has one for
    these. `tied`: chosen modules that read the
    codes of a token table, with the table's name; `headed`: those that take the configuration's grid for the head, of
    ends that are tied the table.
    """

    config: QuantConfig
    chosen: dict[str, QuantConfig]
    left: dict[str, str]
    tied: dict[str, str]
    headed: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` is its inverse."""
        return {
            "config": self.config.to_dict(), "modules": list(self.chosen), "tied": self.tied, "left": self.left,
            "headed": list(self.headed),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Any) -> "Plan":
        """From JSON that nobody has checked yet. Raises ValueError that names what was given and what is allowed."""
        keys, data = ["config", "modules", "tied", "left", "headed"], filled(data, cls, {})
        if not isinstance(data, dict) or set(data) != set(keys):
            raise ValueError(
                f"a plan has the keys {keys}; this one has {list(data) if isinstance(data, dict) else data!r:.200}"
            )
        modules, tied, left = data["modules"], data["tied"], data["left"]
        if not isinstance(modules, list) or not all(isinstance(name, str) for name in modules):
            raise ValueError(f"modules is {modules!r:.200}; give a list of module names")
        if not modules or len(set(modules)) < len(modules):
            raise ValueError("modules names nothing, or one module twice; name each quantized module once")
        for key in ("tied", "left"):
            if not isinstance(data[key], dict) or not all(
                isinstance(s, str) for item in data[key].items() for s in item
            ):
                raise ValueError(f"{key} is {data[key]!r:.200}; give an object of texts")
        named = set(modules)
        if unknown := [name for pair in tied.items() for name in pair if name not in named or pair[1] in tied]:
            raise ValueError(
                f"tied names {unknown!r:.200}; both ends must be in modules, and the second end not tied itself"
            )
        config, chosen, headed = QuantConfig.from_saved(data["config"]), {}, data["headed"]
        if not isinstance(headed, list) or not all(
            isinstance(name, str) and name in named and name not in tied for name in headed
        ):
            raise ValueError(f"headed is {headed!r:.200}; give a list of modules, each the table if it is tied")
        for name in modules:
            own, _ = config.of(owner := tied.get(name, name))
            if own is None:
                raise ValueError(f"{name} is among the quantized modules, but a rule leaves it alone")
            if owner in headed and own.head is None:
                raise ValueError(f"headed names {owner}, but the configuration has no grid for the head")
            chosen[name] = own.headed() if owner in headed else own
        return cls(config, chosen, left, tied, tuple(headed))


def attentions(model: nn.Module, config: QuantConfig) -> dict[str, nn.Module]:
    """The attentions, by name, if `config` has a grid for them anywhere. Raises ValueError if there is none, and for
    one whose products cannot be rounded and that no rule leaves alone."""
    if not any(own is not None and own.attention is not None for own in (config, *(own for _, own in config.rules))):
        return {}
    found = {name: module for name, module in model.named_modules() if attention_of(module)}
    if not found:
        raise ValueError(
            f"the configuration has a grid for attention, but {type(model).__name__} has none that is known (q_proj, "
            "k_proj, v_proj and o_proj or out_proj, as in transformers' ViT): leave it out"
        )
    for name, module in found.items():
        own, _ = config.of(name)
        if own is not None and own.attention is not None and (why := why_not(module)):
            raise ValueError(f"{name}: {why}: leave it in floats (QuantConfig.attention=None)")
    return found


def rectifiers(model: nn.Module, config: QuantConfig) -> dict[str, nn.Module]:
    """The ReLU modules, by name, if `config` has a grid for them anywhere; one shared by many has its first name.

    Raises ValueError if there is a grid and no module.
    """
    if not any(own is not None and own.activation is not None for own in (config, *(own for _, own in config.rules))):
        return {}
    relus = {n: m for n, m in model.named_modules() if n and type(m) in ACTIVATIONS}
    if not relus:
        kinds = " or ".join(f"nn.{kind.__name__}" for kind in ACTIVATIONS)
        raise ValueError(
            f"the configuration has a grid for activations, but {type(model).__name__} has no module {kinds}, and a "
            "functional relu cannot be seen: make it a module, or quantize what goes into the layers instead, "
            "for example QuantConfig(input=Grid(8, symmetric=False, per='tensor'))"
        )
    return relus


def make_plan(model: nn.Module, config: QuantConfig) -> Plan:
    """Decide for every module that holds weights.

    Quantized are linear layers, GPT-2's Conv1D, fused experts and 2-d convolutions, and token tables, subclasses that
    answer alike included (`kind_of`). Norms, biases, position and type tables stay in floats unless a rule names them,
    and so do heads, unless the configuration has a grid for those that are output embeddings. Layers that share a
    weight share its fate: token tables that are tied to each other read the same codes; where one is tied to a head,
    all ends read its codes if bits were asked for either, by the configuration or by a rule that names the table, else
    they stay in floats. ReLU modules are decided on if the configuration has a grid for activations, attentions if it
    has one for these. Raises ValueError for a rule that matches or decides nothing, one that gives bits to what has no
    quantized form or to one end of a tie, bits of a head or a table that there is not, others for one than for the
    other where they are tied, a grid for activations without a ReLU module or for attention without one, or one that
    nothing takes (`check_asked`), and where nothing is left to quantize, or less than half of the model for want of a
    quantized form (`Share.check`).
    """
    modules = weighted(model) | rectifiers(model, config) | attentions(model, config)
    config.check_rules(list(modules))
    for glob, own in config.rules:
        named = {type(module).__name__: module for name, module in modules.items() if fnmatchcase(name, glob)}
        if own is not None and not any(kind_of(m) or rounds(m) for m in named.values()):
            raise ValueError(
                f"the rule {glob!r} gives bits to {', '.join(named)}, which have no quantized form; leave it out"
            )
    words, last = {id(table.weight) for table in token_tables(model)}, outputs(model)
    ends = Ends(
        [name for name, module in modules.items() if module in last],
        [name for name, module in modules.items() if isinstance(module, nn.Embedding) and id(module.weight) in words],
    )
    ends.check(modules, config)
    check_asked(modules, config, ends.heads)
    verdicts = decide(modules, config, heads(model), ends)
    ties = ends.settle(modules, verdicts, config)
    chosen = {name: verdict for name, verdict in verdicts.items() if isinstance(verdict, QuantConfig)}
    left = {name: verdict for name, verdict in verdicts.items() if isinstance(verdict, str)}
    if not chosen:
        reasons = "; ".join(f"{n}: {why}" for n, why in list(left.items())[:8])
        raise ValueError(f"nothing would be quantized ({reasons}); name a module in a rule or give the config a grid")
    check_groups(modules, chosen, set(ties))
    each = [config, *(own for _, own in config.rules if own is not None)]
    if any(own.weight or own.embedding or own.head for own in each):  # else no weights were asked for
        Share.of(model, chosen, left).check()
    headed = tuple(name for name, own in chosen.items() if name not in ties and own is not config.of(name)[0])
    return Plan(config, chosen, left, ties, headed)


def decide(
    modules: dict[str, nn.Module], config: QuantConfig, outside: set[nn.Module], ends: Ends
) -> dict[str, QuantConfig | str]:
    """For each module its configuration, or why it is left alone, whatever it is tied to."""

    def verdict(name: str, module: nn.Module) -> QuantConfig | str:
        (chosen, ruled), kind = config.of(name), kind_of(module)
        if chosen is None:
            return RULED
        if kind is None and not rounds(module):
            return f"{type(module).__name__} {FORMLESS}"
        if name in ends.heads and chosen.head is not None:
            return chosen.headed()
        if module in outside and not ruled:
            return "the head stays in floats"
        if attention_of(module):
            return "the configuration has no grid for attention" if chosen.attention is None else chosen
        if kind is None:
            return "the configuration has no grid for activations" if chosen.activation is None else chosen
        if kind is not nn.Embedding:
            return "the configuration has no grid for weights" if chosen.weight is None else chosen
        if not ruled and name not in ends.tables:
            return "a table, but not of tokens"
        return "the configuration has no grid for embeddings" if chosen.embedding is None else chosen

    return {name: verdict(name, module) for name, module in modules.items()}


def check_groups(modules: dict[str, nn.Module], chosen: dict[str, QuantConfig], tied: set[str]) -> None:
    """Raises ValueError for a group size that does not divide a layer's inputs, and names those that divide all, and
    for inputs of a convolution that have more than one scale."""
    widths: dict[int, dict[str, int]] = {}
    for name, config in chosen.items():
        layer = modules[name]
        if rounds(layer):
            continue
        if config.input is not None and (why := unfit(layer, config.input)):
            raise ValueError(f"{name}: {why}")
        table = kind_of(layer) is nn.Embedding
        grids = [config.embedding if table or name in tied else config.weight]
        if not table and kind_of(layer) is not nn.Conv2d:  # whose inputs have no groups
            grids.append(config.input)
        for grid in grids:
            if grid is not None and isinstance(grid.per, int):
                widths.setdefault(grid.per, {})[name] = weight_rows(layer).shape[1]
    for size, layers in widths.items():
        wrong = [name for name, width in layers.items() if width % size]
        if not wrong:
            continue
        common = math.gcd(*layers.values())
        fit = [str(n) for n in range(2, common + 1) if common % n == 0]
        remedy = f"give one that divides every layer: {', '.join(fit)}" if fit else "no other divides every layer"
        more = f", nor those of {len(wrong) - 1} more of {len(layers)} layers" if len(wrong) > 1 else ""
        raise ValueError(
            f"{wrong[0]}: the group size {size} does not divide the input dimension {layers[wrong[0]]}{more}; "
            f"{remedy}, or one scale per channel (per token for inputs), or leave layers in floats by a rule"
        )


def plan_of(model: nn.Module) -> Plan:
    """The plan that `model` was quantized by. Raises ValueError if it was not."""
    plan = vars(model).get("zsaq_plan")
    if not isinstance(plan, Plan):
        raise ValueError(f"this {type(model).__name__} is not a quantized model: give it to zsaq.quantize_model first")
    return plan
