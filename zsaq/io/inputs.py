"""Inputs that a model takes, without any data: for traces, timings, parity, and what `save` compares."""

import inspect
import json
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from zsaq.quant.heads import token_table
from zsaq.quant.positions import configs_of, longest

PROCESSORS: Final = ("preprocessor_config.json", "processor_config.json")
READABLE: Final = 2**20  # bytes of a processor's file
LARGEST: Final = 4096  # pixels of a side
SIDE: Final = 224  # of images of which nothing is known
LENGTH: Final = 2048  # tokens of a model that tells no limit
ASIDE: Final = ("loss", "hidden_states", "attentions", "past_key_values")  # no answers


def processors_of(model: PreTrainedModel) -> Iterator[dict[str, Any]]:
    """Image processors that travel with a student, as they are saved; what cannot be read is none."""
    record = vars(model).get("zsaq")
    if record is None:
        return
    for part in record.parts:
        if hasattr(part, "to_dict") and isinstance(facts := part.to_dict(), dict):
            yield facts
    for path in [record.files / name for name in PROCESSORS] if record.files is not None else []:
        try:
            facts = json.loads(path.read_bytes()) if path.stat().st_size <= READABLE else None
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(facts, dict):
            yield inner if isinstance(inner := facts.get("image_processor"), dict) else facts


def sides_of(size: Any) -> tuple[int, int] | None:
    """Height and width of what a config or a processor calls a size; None for what is none.

    A number is a square, a pair is height and width, and a shortest edge that of a square picture. Raises ValueError
    for sides below 1 or above `LARGEST`.
    """
    if isinstance(size, dict):
        edge = size.get("shortest_edge", size.get("longest_edge"))
        size = (size.get("height", edge), size.get("width", edge))
    height, width = size if isinstance(size, list | tuple) and len(size) == 2 else (size, size)
    if type(height) is not int or type(width) is not int:
        return None
    if not 1 <= min(height, width) <= max(height, width) <= LARGEST:
        raise ValueError(f"images of {height} x {width} pixels are not made: a side has 1 to {LARGEST}")
    return height, width


def shown(processor: dict[str, Any]) -> tuple[int, int] | None:
    """Height and width of what an image processor makes of a square picture; None if it tells none."""
    last_first = {"pad_size": "do_pad", "crop_size": "do_center_crop", "size": "do_resize"}
    done = (processor.get(name) for name, does in last_first.items() if processor.get(does, does != "do_pad"))
    return next((sides for size in done if (sides := sides_of(size))), None)


def image_shape(model: PreTrainedModel, size: tuple[int, int] | None = None) -> tuple[int, int, int]:
    """Channels, height and width: `size` where it is given, else what the saved processor makes, else as the config or
    one nested in it tells, else `SIDE`. Channels are those that the first convolution reads.

    Raises ValueError as `sides_of` does, and for a given size that is none.
    """
    if size is not None and sides_of(size) is None:
        raise ValueError(f"size is {size!r}, which is no size of images: give (height, width), two ints of pixels")
    configs = configs_of(model)
    sides = [] if size is None else [sides_of(size)]
    sides += [shown(processor) for processor in processors_of(model)]
    sides += [sides_of(config.get(name)) for config in configs for name in ("image_size", "img_size")]
    height, width = next((found for found in sides if found), (SIDE, SIDE))
    stem = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    told = next((n for config in configs if type(n := config.get("num_channels")) is int), 3)
    return told if stem is None else stem.in_channels, height, width


def text_limit(model: PreTrainedModel) -> int:
    """The most tokens that the model takes; `LENGTH` where neither its config nor its table of positions tells."""
    return longest(model) or LENGTH


def random_inputs(
    model: PreTrainedModel, shape: tuple[int, ...], seed: int = 0, size: tuple[int, int] | None = None
) -> dict[str, Tensor]:
    """Random tokens and token types of `shape` (batch, tokens), for the decoder too where there is one, or noise as
    `shape` (batch,) images, of the height and width `size` (see `image_shape`).

    Raises ValueError for another shape, longer than the model takes, and for a model that reads neither.
    """
    rng, kind = torch.Generator().manual_seed(seed), type(model).__name__
    image = model.main_input_name == "pixel_values"
    if len(shape) != (1 if image else 2) or min(shape) < 1:
        raise ValueError(f"the shape is {shape}; give {'(batch,)' if image else '(batch, tokens)'} for {kind}")
    if image:
        return {"pixel_values": torch.randn(shape[0], *image_shape(model, size), generator=rng)}
    if size is not None:
        raise ValueError(f"{kind} reads text; a size is one of images")
    table = token_table(model)
    if model.main_input_name != "input_ids" or table is None:
        raise ValueError(
            f"{kind} reads {model.main_input_name}; random inputs are known for images (pixel_values) and text only"
        )
    if shape[1] > text_limit(model):
        raise ValueError(f"{kind} takes {text_limit(model)} tokens; {shape} has more")
    if kind.endswith("ForMultipleChoice"):
        raise ValueError(f"{kind} reads several texts a row; random inputs are known for one")
    rows: Any = table.num_embeddings  # an embedding's own, also where it has become an operator
    ids = torch.randint(0, rows, shape, generator=rng)
    if model.config.is_encoder_decoder and type(last := model.config.to_dict().get("eos_token_id")) is int:
        ids = torch.where(ids == last, (last + 1) % rows, ids)
        ids[:, -1] = last  # by which its classifiers find the end of a text, the only one
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if (types := model.config.to_dict().get("type_vocab_size", 0)) > 1:
        inputs["token_type_ids"] = torch.randint(0, types, shape, generator=rng)
    if "decoder_input_ids" in inspect.signature(type(model).forward).parameters:
        inputs["decoder_input_ids"] = torch.randint(0, rows, shape, generator=rng)
    return inputs


def answers_of(output: Any) -> dict[str, Tensor]:
    """What a model answers, by name and in its order: the tensors of its output that are no states and no loss."""
    return {name: value for name, value in output.items() if name not in ASIDE and isinstance(value, Tensor)}
