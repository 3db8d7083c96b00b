"""A toy teacher of each kind, as an object beside what reads its inputs."""

from pathlib import Path
from typing import Any

from transformers import BitImageProcessorPil, LlamaConfig, LlamaForCausalLM

from language_toys import bert, bpe, opt, wordpiece
from toys import spread
from vision_toys import resnet

SIDE = {"height": 16, "width": 16}
FEW_IMAGES: dict[str, Any] = {"images": 4, "image_steps": 2, "steps": 2, "batch_size": 4}


def processor() -> BitImageProcessorPil:
    return BitImageProcessorPil(size={"shortest_edge": 16}, crop_size=SIDE)


def llama() -> Any:
    config = LlamaConfig(
        vocab_size=len(bpe()), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32, pad_token_id=0, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    return spread(LlamaForCausalLM(config))


def folder_of(folder: Path, *parts: Any) -> Path:
    for part in parts:
        part.save_pretrained(folder)
    return folder


def objects(name: str) -> tuple[Any, Any]:
    if name == "resnet":
        return resnet(), processor()
    if name == "bert":
        return bert(wordpiece()), wordpiece()
    return {"llama": llama, "opt": lambda: opt(bpe())}[name](), bpe()
