"""One pass of two processes, each with images of its own."""

from pathlib import Path

import torch
from accelerate import Accelerator, PartialState, debug_launcher
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file, save_file
from torch import Tensor

from vision_toys import cnn, images
from zsaq import Loop, one_pass, quantize_model
from zsaq.vision.models import classifier
from zsaq.vision.presets import preset_config


def half_of_them(folder: str) -> None:
    """One of two processes, with half of the images."""
    loop = Loop(Accelerator(cpu=True))
    own = images(8, 16)[loop.accelerator.process_index :: 2]
    save_file(of_one_pass(own, loop), f"{folder}/{loop.accelerator.process_index}.safetensors")


def of_one_pass(pixels: Tensor, loop: Loop | None = None) -> dict[str, Tensor]:
    teacher = classifier(cnn())
    student = quantize_model(teacher, preset_config("w4a8", "brecq", teacher))
    return one_pass(student, teacher, [{"pixel_values": pixels}], loop=loop).state_dict()


def test_two_processes_with_half_of_the_images_each_equal_one_with_all(tmp_path: Path) -> None:
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    debug_launcher(half_of_them, (str(tmp_path),), num_processes=2)
    whole, ranks = of_one_pass(images(8, 16)), [load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1)]
    half = of_one_pass(images(8, 16)[:4])
    assert all(torch.equal(ranks[0][name], ranks[1][name]) for name in whole)
    # Sums in another order may turn one rounding, and then what comes behind it.
    first = [name for name in whole if name.startswith(("module.conv1", "module.bn1"))]
    assert len(first) > 4 and not all(torch.equal(half[name], whole[name]) for name in first)
    for name in first:
        torch.testing.assert_close(ranks[0][name], whole[name], rtol=1e-3, atol=1e-4)
    assert alike(ranks[0], whole) > 2 * alike(half, whole)


def alike(student: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The share of weights that are the same."""
    weights = [name for name, value in other.items() if value.ndim > 1 and name.endswith(".weight")]
    same = [torch.isclose(student[name], other[name], rtol=1e-3, atol=1e-4).flatten() for name in weights]
    return float(torch.cat(same).float().mean())
