"""A student computes through its integers, whatever was put around or onto its teacher; or it is refused by name."""

import copy
import dataclasses
import functools
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from accelerate.hooks import AlignDevicesHook, ModelHook, SequentialHook, add_hook_to_module
from torch import Tensor, nn
from torch.backends import mha
from torch.nn.utils import parametrizations, parametrize, prune

import zsaq
from students import bits
from toys import batches, bert, gpt2
from zsaq.quant.config import QuantConfig
from zsaq.quant.model import quantize_model
from zsaq.quant.plan import plan_of

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")  # torch.compile's own
IDS = batches(1)[0]["input_ids"]


def dense(model: Any) -> Any:
    return model.bert.encoder.layer[0].output.dense


def answers_by_its_integers(student: Any) -> bool:
    """Whether every chosen layer's answer follows its own weight, and the whole is what an untouched teacher's is."""
    modules, before = dict(student.named_modules()), bits(student, IDS)
    for name in plan_of(student).chosen:
        weight = modules[name].weight
        kept = weight.detach().clone()
        with torch.no_grad():
            weight.mul_(-3)
            moved = bits(student, IDS)
            weight.copy_(kept)
        if torch.equal(moved, before):
            return False
    return True


def in_parts(model: Any) -> Any:
    first: Any = "cpu"  # torch.device("cpu") would offload
    return dispatch_model(model, {"bert": "cpu", "classifier": "cpu"}, main_device=first, force_hooks=True)


HARMLESS: dict[str, Callable[[Any], Any]] = {
    "dispatched": lambda m: dispatch_model(m, {"": "cpu"}, force_hooks=True),
    "dispatched in parts": in_parts,
    "one hook of accelerate": lambda m: add_hook_to_module(dense(m), ModelHook()),
    "two hooks of accelerate": lambda m: add_hook_to_module(
        dense(m), SequentialHook(ModelHook(), AlignDevicesHook("cpu", io_same_device=True))
    ),
    "compiled in place": lambda m: m.compile(),
    "a norm's method": lambda m: setattr(
        norm := dense_block(m).output.LayerNorm, "forward", types.MethodType(nn.LayerNorm.forward, norm)
    ),
    "a hook that looks on": lambda m: dense(m).register_forward_hook(lambda module, args, out: None),
    "captured": lambda m: m(IDS, output_hidden_states=True),
    "pruned for good": lambda m: [
        prune.l1_unstructured(dense(m), "weight", 0.3),
        prune.remove(dense(m), "weight"),
    ],
}


def dense_block(model: Any) -> Any:
    return model.bert.encoder.layer[0]


@pytest.mark.parametrize("kind", HARMLESS)
def test_what_changes_nothing_is_let_through(kind: str) -> None:
    torch.manual_seed(0)
    teacher = bert()
    HARMLESS[kind](teacher)
    plain = bits(teacher, IDS)
    student = quantize_model(teacher, "w2a8")
    assert not torch.equal(bits(student, IDS), plain) and torch.equal(bits(teacher, IDS), plain)
    assert answers_by_its_integers(student)


def test_a_student_of_a_dispatched_teacher_is_any_student(tmp_path: Any) -> None:
    teacher = bert()
    plain = quantize_model(teacher, "w2a8")
    student: Any = quantize_model(dispatch_model(copy.deepcopy(teacher), {"": "cpu"}, force_hooks=True), "w2a8")
    assert torch.equal(bits(student, IDS), bits(plain, IDS))
    assert vars(student).keys() == vars(plain).keys()
    student.to(torch.float64)  # pyright: ignore[reportCallIssue]
    assert {p.dtype for p in student.parameters()} == {torch.float64} and teacher.dtype == torch.float32
    assert torch.equal(bits(zsaq.load(zsaq.save(student.float(), tmp_path / "x")), IDS), bits(plain, IDS))


def clamp(layer: Any, args: Any) -> None:
    layer.weight.data.clamp_(-0.1, 0.1)


def patched(module: Any) -> None:
    forward = module.forward
    module.forward = lambda *args, **options: forward(*args, **options)


def methods_of_old(module: Any) -> None:
    forward = module.forward
    module.forward = types.MethodType(lambda self, *args, **options: forward(*args, **options), module)


OFFLOADED, OWN = "lies on the meta device", "has a forward of its own"
COMPUTED, HOOK = "dense: its weight is computed from other tensors", "dense: a forward hook of this Linear"
REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "offloaded": (lambda m: cpu_offload(m, torch.device("cpu")), OFFLOADED),
    "meta": (lambda m: m.to("meta"), OFFLOADED),
    "one meta buffer": (lambda m: m.register_buffer("x", torch.empty(1, device="meta")), "x lies on the meta"),
    "a layer's closure": (lambda m: patched(dense(m)), OWN),
    "a layer's method": (lambda m: setattr(dense(m), "forward", types.MethodType(F, dense(m))), OWN),
    "a block's closure": (lambda m: patched(dense_block(m)), OWN),
    "a block's method": (lambda m: methods_of_old(dense_block(m)), OWN),
    "a block's partial": (
        lambda m: setattr(block := dense_block(m), "forward", functools.partial(type(block).forward, block)),
        OWN,
    ),
    "the model's closure": (patched, "the teacher: this BertForSequenceClassification has a forward"),
    "patched, then dispatched": (
        lambda m: [patched(dense(m)), dispatch_model(m, {"": "cpu"}, force_hooks=True)],
        OWN,
    ),
    "weight norm": (lambda m: parametrizations.weight_norm(dense(m)), COMPUTED),
    "spectral norm": (lambda m: parametrizations.spectral_norm(dense(m)), COMPUTED),
    "orthogonal": (lambda m: parametrizations.orthogonal(dense(m)), COMPUTED),
    "a parametrization": (lambda m: parametrize.register_parametrization(dense(m), "weight", nn.Tanh()), COMPUTED),
    "old spectral norm": (lambda m: nn.utils.spectral_norm(dense(m)), COMPUTED),
    "pruned": (lambda m: prune.l1_unstructured(dense(m), "weight", 0.3), COMPUTED),
    "a hook that clamps": (lambda m: dense(m).register_forward_pre_hook(clamp), HOOK),
    "a hook that scales": (lambda m: dense(m).register_forward_hook(lambda module, args, out: out * 2), HOOK),
    "a hook on inputs": (lambda m: dense(m).register_forward_pre_hook(lambda module, args: (args[0] * 2,)), HOOK),
    "a hook that fails": (
        lambda m: dense(m).register_forward_hook(lambda module, args, out: 1 / 0),
        "ZeroDivisionError",
    ),
    "8-bit floats": (lambda m: m.to(torch.float8_e4m3fn), "holds 8-bit floats"),
    "a tensor of another kind": (
        lambda m: m.register_parameter("odd", nn.Parameter(torch.ones(1).as_subclass(Odd))),
        "odd is a Odd",
    ),
    "another library's": (lambda m: setattr(m.config, "quantization_config", {"quant_method": "gptq"}), "already by"),
}


class Odd(Tensor):
    """Stands for sharded and quantized tensors."""


def F(layer: Any, x: Tensor) -> Tensor:
    return nn.functional.linear(x, layer.weight, layer.bias)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_a_swap_does_not_reach_is_refused_by_name(kind: str) -> None:
    change, message = REFUSED[kind]
    teacher = bert()
    change(teacher)
    with pytest.raises(ValueError, match=message):
        quantize_model(teacher, "w2a8")


@pytest.mark.parametrize("kind", ["weight norm", "orthogonal", "a hook that scales"])
def test_a_layer_left_in_floats_may_compute_as_it_likes(kind: str) -> None:
    teacher = bert()
    REFUSED[kind][0](teacher)
    rules = (("bert.encoder.layer.0.output.dense", None),)
    student = quantize_model(teacher, dataclasses.replace(QuantConfig.parse("w2a8"), rules=rules))
    assert not torch.equal(bits(student, IDS), bits(teacher, IDS))


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (nn.DataParallel, r"DataParallel.*give the model itself, its \.module"),
        (torch.optim.swa_utils.AveragedModel, r"AveragedModel.*its \.module"),
        (torch.compile, r"OptimizedModule.*compiled.*_orig_mod"),
        (lambda m: quantize_model(m, "w2a8"), "quantized already"),
    ],
)
def test_a_wrapper_is_refused(wrap: Callable[[nn.Module], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantize_model(wrap(gpt2()), "w2a8")


def test_torchs_fast_path_does_not_pass_quantized_layers_by() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    teacher = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(16, 3)).eval()
    floats = dataclasses.replace(
        QuantConfig.parse("w2a16"), rules=(("*.self_attn", None), ("*.self_attn.out_proj", None))
    )
    student, x = quantize_model(teacher, floats), torch.randn(2, 5, 16)
    with torch.no_grad():
        fast = student(x)
        mha.set_fastpath_enabled(False)
        try:
            assert torch.allclose(fast, student(x), atol=1e-5) and not torch.allclose(fast, teacher(x), atol=0.01)
        finally:
            mha.set_fastpath_enabled(True)
