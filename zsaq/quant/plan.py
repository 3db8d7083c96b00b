"""What is decided about a model before it is touched: which modules are quantized how, and why others are not."""

import math
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from zsaq.quant.config import QuantConfig
from zsaq.quant.layers import ACTIVATIONS, SWAPS, weight_rows


@dataclass(frozen=True)
class Plan:
    """What was decided for each module that holds weights: a configuration, or why it is left alone.

    ReLU modules are among them if the configuration has a grid for activations. `tied`: chosen modules that read the
    codes of a token table, with the table's name.
    """

    config: QuantConfig
    chosen: dict[str, QuantConfig]
    left: dict[str, str]
    tied: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` is its inverse."""
        return {"config": self.config.to_dict(), "modules": list(self.chosen), "tied": self.tied, "left": self.left}

    @classmethod
    def from_dict(cls, data: Any) -> "Plan":
        """From JSON that nobody has checked yet. Raises ValueError that names what was given and what is allowed."""
        keys = ["config", "modules", "tied", "left"]
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
        config, chosen = QuantConfig.from_saved(data["config"]), {}
        for name in modules:
            own, _ = config.of(tied.get(name, name))
            if own is None:
                raise ValueError(f"{name} is among the quantized modules, but a rule leaves it alone")
            chosen[name] = own
        return cls(config, chosen, left, tied)


def weighted(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that own parameters, by name."""
    return {n: m for n, m in model.named_modules() if n and any(True for _ in m.parameters(recurse=False))}


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


def heads(model: nn.Module) -> set[nn.Module]:
    """What stands outside the base model of a transformers model; nothing for a plain module."""
    if not isinstance(model, PreTrainedModel) or model.base_model is model:
        return set()
    return set(model.modules()) - set(model.base_model.modules())


def token_table(model: nn.Module) -> nn.Module | None:
    """What transformers calls the input embeddings; None for a plain module and for models without any (ResNet)."""
    try:
        return model.get_input_embeddings() if isinstance(model, PreTrainedModel) else None
    except NotImplementedError:
        return None


def make_plan(model: nn.Module, config: QuantConfig) -> Plan:
    """Decide for every module that holds weights.

    Quantized are linear layers, GPT-2's Conv1D and 2-d convolutions, and the token table. Heads, norms, biases,
    position and type tables stay in floats unless a rule names them. A token table that is tied to the head stays in
    floats with it; where a rule names the table, both ends read the same codes. ReLU modules are decided on if the
    configuration has a grid for activations. Raises ValueError for a rule that matches or decides nothing, one that
    gives bits to what has no quantized form, a grid for activations without a ReLU module, and where nothing is left to
    quantize.
    """
    outside = heads(model)
    modules = weighted(model) | rectifiers(model, config)
    config.check_rules(list(modules))
    for glob, own in config.rules:
        named = {type(module).__name__: type(module) for name, module in modules.items() if fnmatchcase(name, glob)}
        if own is not None and not any(kind in SWAPS or kind in ACTIVATIONS for kind in named.values()):
            raise ValueError(
                f"the rule {glob!r} gives bits to {', '.join(named)}, which have no quantized form; leave it out"
            )
    table = token_table(model)
    shared: dict[int, list[str]] = {}
    for name, module in modules.items():
        if isinstance(weight := module._parameters.get("weight"), nn.Parameter):
            shared.setdefault(id(weight), []).append(name)

    def decide(name: str, module: nn.Module) -> QuantConfig | str:
        chosen, ruled = config.of(name)
        if type(module) not in SWAPS and type(module) not in ACTIVATIONS:
            return f"{type(module).__name__} has no quantized form"
        if chosen is None:
            return "left alone by a rule"
        if type(module) in ACTIVATIONS:
            if module in outside and not ruled:
                return "the head stays in floats"
            return "the configuration has no grid for activations" if chosen.activation is None else chosen
        ends = shared[id(module._parameters["weight"])]
        if type(module) is nn.Embedding:
            if not ruled and module is not table:
                return "a table, but not of tokens"
            if chosen.embedding is None:
                return "the configuration has no grid for embeddings"
            if not ruled and len(ends) > 1:
                return f"tied to {' and '.join(e for e in ends if e != name)}, which stays in floats"
            return chosen
        if len(ends) > 1 and (tied := next((e for e in ends if type(modules[e]) is nn.Embedding), None)):
            with_table = config.of(tied)
            if with_table[1] and with_table[0] is not None and with_table[0].embedding is not None:
                return with_table[0]
            if ruled:
                raise ValueError(
                    f"{name} is tied to the table {tied}; write the rule for {tied}, then both are quantized"
                )
        if module in outside and not ruled:
            return "the head stays in floats"
        return "the configuration has no grid for weights" if chosen.weight is None else chosen

    chosen, left = {}, {}
    for name, module in modules.items():
        verdict = decide(name, module)
        if isinstance(verdict, str):
            left[name] = verdict
        else:
            chosen[name] = verdict
    if not chosen:
        reasons = "; ".join(f"{n}: {why}" for n, why in list(left.items())[:8])
        raise ValueError(f"nothing would be quantized ({reasons}); name a module in a rule or give the config a grid")
    tables = {id(modules[n].weight): n for n in chosen if type(modules[n]) is nn.Embedding}
    owners = {n: tables.get(id(modules[n]._parameters.get("weight")), n) for n in chosen}
    check_groups(modules, chosen, {n for n, owner in owners.items() if owner != n})
    return Plan(config, chosen, left, {n: owner for n, owner in owners.items() if owner != n})


def check_groups(modules: dict[str, nn.Module], chosen: dict[str, QuantConfig], tied: set[str]) -> None:
    """Raises ValueError for a group size that does not divide a layer's inputs, and names those that divide all."""
    widths: dict[int, dict[str, int]] = {}
    for name, config in chosen.items():
        layer = modules[name]
        if type(layer) in ACTIVATIONS:
            continue
        table = type(layer) is nn.Embedding
        grids = [config.embedding if table or name in tied else config.weight]
        if not table and type(layer) is not nn.Conv2d:  # whose inputs have no groups
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
