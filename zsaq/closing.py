"""What a run says at its end: how near the student came."""

import dataclasses

from torch import nn

from zsaq.language.job import TextJob
from zsaq.language.nearness import nearness, remedy
from zsaq.quant.config import QuantConfig
from zsaq.subject import Subject
from zsaq.train.logging import say
from zsaq.train.loop import Loop


def closing(subject: Subject, student: nn.Module, config: QuantConfig, seed: int, loop: Loop) -> dict[str, float]:
    """Of a causal student its agreement and KL with the teacher on text that this wrote for nothing else, as
    `Results.own_text` has it; both are told, and, where it is far, what would bring it nearer. {} for others."""
    try:
        near = nearness(subject.job, student, seed) if isinstance(subject.job, TextJob) else None
    except Exception as error:  # noqa: BLE001 (a student shall not be lost for what is only told)
        say(f"How near the student came could not be measured ({type(error).__name__}: {error!s:.200})")
        return {}
    if near is None:
        return {}
    if loop.accelerator.is_main_process:
        say(str(near))
        sizes = subject.job.sized.items() if isinstance(subject.job, TextJob) else ()
        size = next((size for size, chosen in sizes if chosen == config), None)
        if (advice := remedy(config, near, size)) is not None:
            say(advice)
    return dataclasses.asdict(near)
