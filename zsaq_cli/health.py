"""`zsaq doctor`: what this machine and this environment can run. Asks nothing of the network."""

import importlib.metadata
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal, NamedTuple

from rich import box
from rich.markup import escape
from rich.table import Table

from zsaq_cli.answer import FINE, MISSING, Json, Outcome, answer

PYTHON: Final = (3, 11)
USED_BY: Final = {  # what needs an extra
    "export": "zsaq export, verify, bench",
    "openvino": "zsaq export --to openvino",
    "eval": "zsaq evaluate",
    "vision": "zsaq quantize and evaluate for images",
    "plot": "pictures of what was synthesized",
    "lora": "low-rank training of a generator",
    "bnb": "8-bit optimizers, NF4 in zsaq bench",
}
FLAGS: Final = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_int8", "amx_bf16", "asimddp", "i8mm")
SIGNS: Final = {"ok": "[green]ok[/]", "absent": "[yellow]absent[/]", "broken": "[bold red]broken[/]", "fact": ""}
GIB: Final = 2**30


class Check(NamedTuple):
    """One line. Only "broken" counts: what the core needs and does not find. `remedy`: what to do, or what lacks."""

    group: str
    name: str
    value: str
    state: Literal["ok", "absent", "broken", "fact"] = "fact"
    remedy: str = ""


def doctor(as_json: Json = False) -> None:
    """Tell what this machine and this environment can run. Nothing is downloaded.

    Exit code 3 if something that the core needs is missing or broken.

    Examples:

    \b
    zsaq doctor
    zsaq doctor --json
    """
    answer(as_json, examine)


def examine() -> Outcome:
    checks = [*python(), *library(), *packages(), *torch(), *onnx(), *machine(), *hub()]
    fine = all(check.state != "broken" for check in checks)
    table = Table("", "what", "found", "", box=box.SIMPLE_HEAD, title="zsaq doctor", title_justify="left")
    before = None
    for check in checks:
        if before not in (None, check.group):
            table.add_section()
        found = escape(check.value) + (f"\n[dim]{escape(check.remedy)}[/]" if check.remedy else "")
        table.add_row(check.group if check.group != before else "", escape(check.name), found, SIGNS[check.state])
        before = check.group
    verdict = "The core can run." if fine else "The core cannot run: see what is broken."
    return Outcome({"fine": fine, "checks": [c._asdict() for c in checks]}, (table, verdict), FINE if fine else MISSING)


def python() -> Iterator[Check]:
    fine = sys.version_info >= PYTHON
    remedy = "" if fine else f"install Python {'.'.join(map(str, PYTHON))} or newer"
    yield Check("python", "python", platform.python_version(), "ok" if fine else "broken", remedy)
    yield Check("python", "platform", platform.platform())


def packages() -> Iterator[Check]:
    """What zsaq's own metadata asks for: the core's packages, then each extra's."""
    from packaging.requirements import Requirement

    try:
        told = importlib.metadata.requires("zsaq") or []
        yield Check("core", "zsaq", importlib.metadata.version("zsaq"), "ok")
    except importlib.metadata.PackageNotFoundError:
        yield Check("core", "zsaq", "not installed", "broken", "pip install zsaq")
        return
    for text in told:
        wanted = Requirement(text)
        extra = (re.search(r"extra == [\"']([\w-]+)[\"']", str(wanted.marker)) or [None, None])[1]
        if wanted.name == "zsaq" or extra not in (None, *USED_BY):
            continue
        try:
            found = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            found = None
        fine = found is not None and wanted.specifier.contains(found, prereleases=True)
        source = "zsaq" if extra is None else f"zsaq[{extra}]"
        use = f'pip install --upgrade "{source}"' + ("" if extra is None else f", for {USED_BY[extra]}")
        yield Check(
            "core" if extra is None else "extras",
            wanted.name if extra is None else f"{wanted.name} ({extra})",
            f"{found or 'not installed'} ({wanted.specifier})",
            "ok" if fine else "broken" if extra is None else "absent",
            "" if fine else use,
        )


def library() -> Iterator[Check]:
    """Whether the package itself can be imported: a version may be right and its files damaged."""
    try:
        import zsaq
    except (ImportError, OSError, RuntimeError) as error:
        yield Check("core", "import zsaq", f"{type(error).__name__}: {error}", "broken", "mend what it names")
    else:
        yield Check("core", "import zsaq", str(Path(zsaq.__file__).parent), "ok")


def torch() -> Iterator[Check]:
    try:
        import torch
    except (ImportError, OSError, RuntimeError) as error:
        yield Check("torch", "import torch", f"{type(error).__name__}: {error}", "broken", "install torch again")
        return
    yield Check("torch", "kernels", f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads")
    quantized = [name for name in torch.backends.quantized.supported_engines if name != "none"]
    yield Check("torch", "int8 engines", ", ".join(quantized) or "none")
    cuda = torch.cuda.is_available()
    yield Check("torch", "CUDA", torch.version.cuda or "a build without", "ok" if cuda else "absent", "")
    for index in range(torch.cuda.device_count() if cuda else 0):
        facts = torch.cuda.get_device_properties(index)
        yield Check("torch", f"GPU {index}", f"{facts.name}, {facts.total_memory / GIB:.0f} GiB")


def onnx() -> Iterator[Check]:
    try:
        import onnxruntime
    except (ImportError, OSError) as error:
        yield Check("ONNX Runtime", "providers", str(error), "absent", 'pip install "zsaq[export]"')
    else:
        yield Check("ONNX Runtime", "providers", ", ".join(onnxruntime.get_available_providers()), "ok")


def machine() -> Iterator[Check]:
    described = _read("/proc/cpuinfo")
    model = re.search(r"^model name\s*:\s*(.+)$", described, re.M)
    yield Check("machine", "processor", f"{model[1] if model else platform.processor() or '?'}, {os.cpu_count()} cores")
    known = set(" ".join(re.findall(r"^(?:flags|Features)\s*:\s*(.+)$", described, re.M)).split())
    if known:
        yield Check("machine", "instructions", ", ".join(flag for flag in FLAGS if flag in known) or "none of note")
    told = re.findall(r"^(\w+):\s+(\d+) kB", _read("/proc/meminfo"), re.M)
    memory = {name: int(kib) * 1024 / GIB for name, kib in told}
    if {"MemTotal", "MemAvailable"} <= set(memory):
        yield Check("machine", "memory", f"{memory['MemAvailable']:.1f} of {memory['MemTotal']:.1f} GiB free")
    yield Check("machine", "disk here", f"{shutil.disk_usage('.').free / GIB:.1f} GiB free")


def hub() -> Iterator[Check]:
    try:
        from huggingface_hub import constants, get_token
    except ImportError:
        return
    offline = constants.HF_HUB_OFFLINE
    remedy = "unset HF_HUB_OFFLINE to download or push" if offline else ""
    yield Check("Hub", "offline", "yes" if offline else "no", "fact", remedy)
    token = get_token() is not None
    yield Check("Hub", "login", "a token is there" if token else "none", "ok" if token else "absent",
                "" if token else "hf auth login, for zsaq push")  # fmt: skip
    yield Check("Hub", "cache", str(constants.HF_HUB_CACHE))


def _read(path: str) -> str:
    """What Linux tells there; nothing elsewhere."""
    return Path(path).read_text(encoding="utf-8", errors="replace") if Path(path).is_file() else ""
