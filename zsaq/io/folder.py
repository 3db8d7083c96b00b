"""What a loader is told by a folder that nobody has checked: config.json, the files of the weights and their headers.

The headers say how much there is before anything is built. Of a model that asks for more than that, nothing is built.
"""

import math
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook as on_module
from torch.nn.modules.module import register_module_parameter_registration_hook as on_parameter

from zsaq.form import read_json
from zsaq.io.checksums import MANIFEST
from zsaq.quant.guard import AGAIN, Header

CONFIG: Final = "config.json"
WEIGHTS: Final = "model.safetensors"
INDEX: Final = f"{WEIGHTS}.index.json"
FOREIGN_KEYS: Final = ("auto_map", "custom_pipelines", "transformers_weights")
KERNELS: Final = ("attn_implementation", "experts_implementation")  # which may be code of the Hub, or not installed
PLAIN_KERNELS: Final = (None, "eager", "sdpa", "flex_attention", "grouped_mm", "batched_mm")
COUNTS: Final = re.compile(r"(^|_)num_|(layer|block|stage|expert|depth|label)s?$")  # keys that configs make lists of
FLOAT: Final = "__float__"  # how transformers writes what JSON does not hold
FLOATS: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
MOST: Final = 2**16  # of what is counted, where no tensor has more rows
SPARE: Final = 2**10  # modules and parameters that a model without weights may have
MODULES, PARAMETERS = 16, 4  # for each tensor in the files: far above what any architecture has


def place_of(source: str | Path) -> str:
    """The path of a folder, in the user's home where it says so, or a Hub id as it is. Raises ValueError, with the path
    that was looked at, for what is meant for a folder and is none."""
    place = os.path.expanduser(str(source))
    meant = place.startswith((".", "/", "~")) or os.path.exists(place)
    if not place or (meant and not os.path.isdir(place)):
        raise ValueError(f"{place!r} is no folder: give a folder with config.json, or an id on the Hub")
    return place


def read_config(folder: Path) -> dict[str, Any]:
    """config.json, its form checked (`check_config`). Raises ValueError."""
    try:
        raw = read_json(folder / CONFIG)
        check_config(raw)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from error
    return raw


def entries(raw: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys and values of JSON at any depth; what stands in a list has the key of the list."""
    left: list[tuple[str, Any]] = list(raw.items())
    while left:
        key, value = left.pop()
        yield key, value
        if isinstance(value, dict):
            left += [(key if name == FLOAT else name, each) for name, each in value.items()]
        elif isinstance(value, list):
            left += [(key, each) for each in value]


def check_config(raw: Mapping[str, Any], largest: int = MOST) -> None:
    """Raises ValueError for kernels that are other code, numbers that are none, and counts above `largest`."""
    for key, value in entries(raw):
        if no_number(key, value):
            raise ValueError(f"its {key} is {value}, which is no number; {AGAIN}")
        least = 0 if key.startswith("num_") else -1  # a place, counted from the end
        if isinstance(value, int | float) and COUNTS.search(key) and not least <= value <= largest:
            raise ValueError(f"its {key} is {value!r:.40}, and the files hold nothing of that size; {AGAIN}")
        if key.strip("_") in KERNELS:
            kinds = value.values() if isinstance(value, dict) else [value]
            if other := [kind for kind in kinds if kind not in PLAIN_KERNELS]:
                raise ValueError(
                    f"its {key} is {other[0]!r:.80}, which is code of another package or of the Hub: take it out, and "
                    "choose it after loading with model.set_attn_implementation"
                )


def check_foreign(raw: Mapping[str, Any]) -> None:
    """Raises ValueError for a config that runs or reads more than a model's own code and files."""
    if foreign := sorted({key for key, value in entries(raw) if key in FOREIGN_KEYS and value}):
        raise ValueError(
            f"its config.json has {', '.join(foreign)}, which runs other code or reads other files than zsaq saves: "
            "take it out, or fetch the files again"
        )


def no_number(key: str, value: Any) -> bool:
    """Whether that is nan, infinity where it is no limit, or the negative of what stands under a root."""
    number = value if isinstance(value, float) else FLOATS.get(value, 0.0) if isinstance(value, str) else 0.0
    if key.endswith(("eps", "epsilon")) and isinstance(value, int | float) and value < 0:
        return True
    return math.isnan(number) or (math.isinf(number) and "limit" not in key)


def weight_files(folder: Path, sealed: Mapping[str, Any] | None) -> list[Path]:
    """The safetensors that a loader reads in `folder`; `sealed`: what its manifest lists, None where there is none.

    Raises ValueError for none, and for an index that names anything but files that lie there, and are sealed.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise ValueError(f"{folder} has no readable {WEIGHTS}; {AGAIN}")
    names = sorted(set(shards_of(folder / INDEX).values()))
    for name in names:
        if not (folder / name).is_file() or (sealed is not None and name not in sealed):
            where = "in the folder" if sealed is None else f"among the files of {MANIFEST}"
            raise ValueError(f"{folder / INDEX} names {name}, which is not {where}; {AGAIN}")
    return [folder / name for name in names]


def shards_of(index: Path) -> dict[str, str]:
    """Tensor -> file, of an index. Raises ValueError for another form, and names that are not those of plain files."""
    try:
        data = read_json(index)
        shards = data.get("weight_map")
        if not isinstance(data.get("metadata"), dict) or not isinstance(shards, dict) or not shards:
            raise ValueError("it has no metadata and weight_map")
        for name in shards.values():
            if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*\.safetensors", name):
                raise ValueError(f"{name!r:.200} is no plain name of a safetensors file beside it")
    except ValueError as error:
        raise ValueError(f"{index} cannot be followed: {error}; {AGAIN}") from error
    return shards


@contextmanager
def bounded(header: Header, source: object) -> Iterator[None]:
    """Inside, a model with many more modules or parameters than `header` has tensors is not built to its end.

    Raises ValueError, in the name of `source`. Layers are counted as they come, so it does not matter which key of a
    config asks for them.
    """
    made, thread = {"modules": 0, "parameters": 0}, threading.get_ident()

    def counter(what: str, most: int) -> Any:
        def count(module: nn.Module, name: str, part: Any) -> None:
            made[what] += threading.get_ident() == thread and part is not None
            if made[what] > most:
                raise ValueError(
                    f"{source}: its config.json asks for a model of more than {most:,} {what}, and its weights are "
                    f"{len(header):,} tensors; {AGAIN}"
                )

        return count

    hooks = [
        on_module(counter("modules", SPARE + MODULES * len(header))),
        on_parameter(counter("parameters", SPARE + PARAMETERS * len(header))),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def largest_of(header: Header) -> int:
    """The longest dimension of any tensor, or `MOST` where that is larger: no list of a config is longer."""
    return max([MOST, *(size for _, shape in header.values() for size in shape)])
