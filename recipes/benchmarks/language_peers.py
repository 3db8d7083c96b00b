"""Other quantizers of language models, for `language_models.py`: each answers a float model that holds what its own
would compute with, and the bits of what it quantized. Each needs its own package, and nothing of zsaq.

Bits are counted as if packed without a gap; whatever a peer stores beside its codes counts as it stores it.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

TABLE: Final = 8


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The layers that peers quantize: all but the head."""
    head = model.get_output_embeddings()  # pyright: ignore[reportCallIssue]
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}


@torch.no_grad()
def unchanged(model: nn.Module, table: int) -> float:
    """Bits of what was not quantized, which is 16 a number; the table of tokens is put at 8 bits, a scale of 16 a row,
    if `table` says so. Nothing for a model that came with its own table."""
    if vars(model).get("whole"):
        return 0.0
    done = {id(layer.weight) for layer in linears(model).values()}
    bits = sum(16.0 * p.numel() for p in model.parameters() if id(p) not in done)
    if table == TABLE:
        ends = {id(end.weight): end.weight for end in (model.get_input_embeddings(), model.get_output_embeddings())}  # pyright: ignore[reportCallIssue]
        for weight in ends.values():
            scale = (weight.abs().amax(1, keepdim=True) / 127).half().float().clamp_min(1e-7)
            weight.copy_((weight / scale).round().clamp(-127, 127) * scale)
            bits += (TABLE - 16.0) * weight.numel() + 16.0 * len(weight)
    return bits


def bits_and_group(config: str) -> tuple[int, int]:
    """`4g64` as (4, 64). Raises ValueError for anything else."""
    bits, _, group = config.partition("g")
    if not (bits.isdecimal() and group.isdecimal()):
        raise ValueError(f"{config!r} is no peer's configuration: give bits and group, as in 4g64")
    return int(bits), int(group)


@torch.no_grad()
def hqq(making: Any, config: str) -> tuple[nn.Module, float]:
    """HQQ: scale and zero of 16 bits a group, along the input."""
    from hqq.core.quantize import Quantizer  # pyright: ignore[reportMissingImports]

    bits, group = bits_and_group(config)
    making.begin()
    model, total = making.teacher(), 0.0
    for layer in linears(model).values():
        codes, meta = Quantizer.quantize(
            layer.weight.data, nbits=bits, group_size=group, axis=1, bitpack=False, device="cpu"
        )
        scale, zero = meta["scale"].half().float(), meta["zero"].half().float()
        layer.weight.copy_(((codes.float() - zero) * scale).reshape(meta["shape"]))
        total += layer.weight.numel() * (bits + 32 / group)
    return model, total


@torch.no_grad()
def nf4(making: Any, config: str) -> tuple[nn.Module, float]:
    """bitsandbytes' NF4 with double quantization: 8 bits a block, and 32 for 256 blocks."""
    from bitsandbytes.functional import (  # pyright: ignore[reportMissingImports]
        dequantize_4bit,
        quantize_4bit,
    )

    block = int(config)
    making.begin()
    model, total = making.teacher(), 0.0
    for layer in linears(model).values():
        codes, state = quantize_4bit(
            layer.weight.data.contiguous(), blocksize=block, compress_statistics=True, quant_type="nf4"
        )
        layer.weight.copy_(dequantize_4bit(codes, state).view_as(layer.weight))
        total += layer.weight.numel() * (4 + 8 / block + 32 / (256 * block))
    return model, total


def auto_round(making: Any, config: str) -> tuple[nn.Module, float]:
    """auto-round on text that the model wrote itself; symmetric, a scale of 16 bits a group. `4g32` or `4g32i50`: with
    50 iterations a block (200 is its own default)."""
    from auto_round import AutoRound  # pyright: ignore[reportMissingImports]
    from transformers import AutoTokenizer

    grid, _, count = config.partition("i")
    bits, group = bits_and_group(grid)
    pieces = [{"input_ids": row[None]} for row in making.own()]
    making.begin()
    model, tokenizer = making.teacher(), AutoTokenizer.from_pretrained(making.args.model)
    rounder = AutoRound(
        model, tokenizer, scheme=f"W{bits}A16", group_size=group, sym=True, dataset=pieces, nsamples=len(pieces),
        seqlen=len(pieces[0]["input_ids"][0]), iters=int(count or 200), device_map="cpu", enable_torch_compile=False,
    )  # fmt: skip
    model, _ = rounder.quantize()
    return model, sum(layer.weight.numel() for layer in linears(model).values()) * (bits + 16 / group)


def gptqmodel(making: Any, config: str) -> tuple[nn.Module, float]:
    """GPTQModel on text that the model wrote itself; symmetric, a scale of 16 bits a group."""
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # on two cores it gives itself one, and refuses to begin
    from gptqmodel import BACKEND, GPTQConfig, GPTQModel  # pyright: ignore[reportMissingImports]

    bits, group = bits_and_group(config)
    pieces = [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in making.own()]
    making.begin()
    quantized = GPTQModel.load(
        making.args.model, GPTQConfig(bits=bits, group_size=group, offload_to_disk=False), device="cpu"
    )
    quantized.quantize(pieces, backend=BACKEND.TORCH)
    layers = {name: m for name, m in quantized.model.named_modules() if hasattr(m, "dequantize_weight")}
    model = making.teacher()
    for name, layer in linears(model).items():
        read = layers[name].dequantize_weight().T.float()
        if (read - layer.weight).norm() > 0.5 * layer.weight.norm():
            raise ValueError(
                f"{name}: what GPTQModel gives back is not near the weight, so this row would tell nothing"
            )
        layer.weight.data.copy_(read)
    return model, sum(layer.weight.numel() for layer in linears(model).values()) * (bits + 16 / group)


def gguf(making: Any, config: str) -> tuple[nn.Module, float]:
    """A file of llama.cpp's `llama-quantize`, dequantized by the package gguf; its bits are those of its tensors."""
    from gguf import GGUFReader  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForCausalLM

    making.begin()
    file = Path(config)
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, trust_remote_code=False
    )
    vars(model)["whole"] = True
    return model, 8.0 * sum(int(tensor.n_bytes) for tensor in GGUFReader(file).tensors)


PEERS: Final[dict[str, Callable[[Any, str], tuple[nn.Module, float]]]] = {
    "hqq": hqq,
    "nf4": nf4,
    "auto-round": auto_round,
    "gptqmodel": gptqmodel,
    "gguf": gguf,
}
