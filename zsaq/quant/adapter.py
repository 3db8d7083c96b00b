"""The transformers adapter, the one place that knows its quantizer interface.

Importing this module registers the method "zsaq": `from_pretrained` then rounds a float model while it loads it, if it
is given a `ZsaqConfig`, and reads what `save_pretrained` of a student wrote, packed codes and scales in safetensors and
a `quantization_config` in config.json:

    {"quant_method": "zsaq", "format_version": 1, "config": QuantConfig.to_dict(), "modules": [names],
     "tied": {module: table}, "left": {module: reason}}
"""

import copy
from collections.abc import Collection
from types import MethodType
from typing import Any, Final, final

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from zsaq.quant.alignment import align
from zsaq.quant.attention import QuantAttention
from zsaq.quant.config import QuantConfig
from zsaq.quant.finite import check_loaded, check_teacher
from zsaq.quant.guard import AGAIN, check_header, check_size, decoys, expect, read_header
from zsaq.quant.kept import check_kept, keep_size
from zsaq.quant.kinds import refill
from zsaq.quant.latents import is_step, latents, restore
from zsaq.quant.layers import quant_layers
from zsaq.quant.packed import PackedLayer, packed_layers, quantized
from zsaq.quant.packed_model import check_ranges, pack_plan, packed_weight, round_plan
from zsaq.quant.placing import METHOD, guard
from zsaq.quant.plan import Plan, make_plan, plan_of
from zsaq.quant.reach import check_forwards
from zsaq.quant.sharded import gathered, is_sharded, keeps, wholes

FORMAT_VERSION: Final = 1


@final
class ZsaqConfig(QuantizationConfigMixin):
    """The `quantization_config` of transformers: what to round a float model to while it is loaded.

        AutoModelForCausalLM.from_pretrained(id, quantization_config=zsaq.ZsaqConfig("w4a16g128"))

    `config`: text or a `QuantConfig`. Weights are rounded to nearest as `zsaq.quantize_model` rounds them, and the
    model computes and saves as one that `zsaq.load` gives: packed, not to be trained. A saved model has its plan
    instead. Raises ValueError for a configuration with static ranges, which need calibration.
    """

    quant_method = METHOD  # type: ignore[assignment]

    def __init__(self, config: str | QuantConfig | Plan) -> None:
        self.plan = config if isinstance(config, Plan) else None
        self.config = config.config if isinstance(config, Plan) else QuantConfig.given(config)
        if self.plan is None and self.config.static:
            raise ValueError(
                f"{config!r} has static ranges of inputs or activations, which need calibration and not only weights: "
                "load the float model and call zsaq.quantize(model, config), or give inputs per='token'"
            )

    @classmethod
    def from_dict(cls, config_dict: Any, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """Raises ValueError for another method or version, unknown keys and values that cannot be."""
        if not isinstance(config_dict, dict) or config_dict.get("quant_method") != METHOD:
            raise ValueError(f"quantization_config is {config_dict!r:.200}; zsaq reads quant_method {METHOD!r}")
        version = config_dict.get("format_version")
        if type(version) is not int or version != FORMAT_VERSION:
            raise ValueError(
                f"format_version is {version!r}, this zsaq reads {FORMAT_VERSION}; upgrade zsaq or save again"
            )
        rest = {key: value for key, value in config_dict.items() if key not in ("quant_method", "format_version")}
        config = cls(Plan.from_dict(rest))
        return (config, kwargs) if return_unused_kwargs else config

    def to_dict(self) -> dict[str, Any]:
        plan = {"config": self.config.to_dict()} if self.plan is None else self.plan.to_dict()
        return {"quant_method": METHOD, "format_version": FORMAT_VERSION, **plan}


@final
class ZsaqQuantizer(HfQuantizer):
    quantization_config: ZsaqConfig
    resumable = False  # whether what is saved now is to be trained on
    state: dict[str, Tensor] | None = None  # what is saved now, where it was gathered before

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True  # by adapters beside the packed layers

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[dict[str, Tensor], dict[str, str]]:
        if self.state is not None:
            return self.state, {}
        if vars(model).get("_hf_peft_config_loaded"):  # transformers takes the adapters out of it, and saves them alone
            return model.state_dict(), {}
        check_kept(model)
        return packed_state(model) | (latents(model) if self.resumable else {}), {}

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> None:
        plan = self.quantization_config.plan
        if plan is None:
            skeleton = copy.deepcopy(model)  # on the meta device: what does not fit is refused before a weight is read
            pack_plan(skeleton, make_plan(skeleton, self.quantization_config.config))
            return
        untie(model, plan)
        pack_plan(model, plan)
        for _, layer in quantized(model):
            layer._is_hf_initialized = True  # type: ignore[assignment]
        if checkpoint_files is not None:
            header = read_header(checkpoint_files)
            check_header(model, header)
            check_size(model, header)
        expect(model)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        vars(model)["_weight_conversions"] = []
        watch(model)
        if self.quantization_config.plan is None:
            self.round(model)
            return
        for name, layer in quantized(model):
            try:
                if isinstance(layer, PackedLayer):
                    refill(layer)
                    layer.release()
                    layer.check()
                elif isinstance(layer, QuantAttention):
                    layer.check()
                else:
                    layer.output_quantizer.ranges.check()
            except ValueError as error:
                raise ValueError(f"{name}: {error}; {AGAIN}") from None
        check_loaded(model)
        align(model)

    def round(self, model: PreTrainedModel) -> None:
        """A float model that was just loaded becomes a packed one. Raises ValueError for one on several devices."""
        places = {str(place) for place in vars(model).get("hf_device_map", {}).values()}
        if len(places) > 1 or "disk" in places:
            raise ValueError(
                f"device_map spreads the float model over {sorted(places)}: round it on one device, save it, and give "
                "zsaq.load the device_map"
            )
        check_teacher(model)
        plan = make_plan(model, self.quantization_config.config)
        check_forwards(model, plan)
        untie(model, plan)
        round_plan(model, plan)
        self.pre_quantized = True
        model.config.quantization_config = self.quantization_config = ZsaqConfig(plan)


register_quantization_config(METHOD)(ZsaqConfig)
register_quantizer(METHOD)(ZsaqQuantizer)
guard()


def attach(student: PreTrainedModel) -> None:
    """From now on `student.save_pretrained(folder)` writes packed integers, of the weights that it then has."""
    config = ZsaqConfig(plan_of(student))
    student.config.quantization_config = config
    # Tensors are called as their modules are, not by the names of older versions.
    vars(student).update(
        hf_quantizer=ZsaqQuantizer(config), _weight_conversions=[], save_pretrained=MethodType(save_pretrained, student)
    )
    watch(student)


def watch(model: PreTrainedModel) -> None:
    """A model that keeps the size of its tables, and reads what was saved of it."""
    keep_size(model)
    model.register_load_state_dict_pre_hook(restore)


def save_pretrained(student: PreTrainedModel, save_directory: Any, *args: Any, **options: Any) -> None:
    """transformers' own; what Trainer saves in a folder of its steps holds the latent weights too, to go on from."""
    quantizer = vars(student)["hf_quantizer"]
    quantizer.resumable = is_step(save_directory)
    try:
        type(student).save_pretrained(student, save_directory, *args, **options)
    finally:
        quantizer.resumable = False


def packed_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """What is saved: packed weights instead of latent ones, and the decoys of `quant.guard`.

    Raises ValueError for a static range without values.
    """
    check_ranges(model)
    tied = plan_of(model).tied
    state = packed_tensors(model, tied=tied)
    layers = [name for name, _ in (*quant_layers(model), *packed_layers(model)) if name not in tied]
    return decoys(layers) | state


def packed_tensors(module: nn.Module, prefix: str = "", tied: Collection[str] = ()) -> dict[str, Tensor]:
    """The tensors of a student, or of a part of one whose names begin with `prefix`, with packed weights instead of
    latent ones; those of the `tied` are their tables'. Of a sharded student the main process alone has them; one layer
    is whole at a time, and all processes take part."""
    state = module.state_dict(prefix=prefix, keep_vars=is_sharded(module))
    for name, layer in quant_layers(module):
        name = f"{prefix}{name}"
        latent = f"{name}.weight_quantizer."
        state = {k: v for k, v in state.items() if k != f"{name}.weight" and not k.startswith(latent)}
        if name not in tied:
            with gathered(layer):
                held = packed_weight(layer)
            state |= {f"{name}.{key}": value for key, value in held.items() if keeps(module)}
    return wholes(state) if is_sharded(module) else state


def untie(model: PreTrainedModel, plan: Plan) -> None:
    """Take what will be packed out of transformers' ties of parameters: it has none, and is tied by its codes."""
    packed = {f"{name}.weight" for name in plan.chosen}
    for prefix, part in model.named_modules():
        if isinstance(part, PreTrainedModel):
            start = f"{prefix}." if prefix else ""
            ties = part.get_expanded_tied_weights_keys()
            kept = {k: v for k, v in ties.items() if not {start + k, start + v} & packed}
            if kept != ties:
                part._tied_weights_keys = kept
            every = part.all_tied_weights_keys.items()
            part.all_tied_weights_keys = {k: v for k, v in every if not {start + k, start + v} & packed}
