"""Who may import whom: the arrows of the house, read from the syntax trees; imports inside functions count too."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def rooms(names: str) -> list[str]:
    return [f"zsaq.{name}" for name in names.split()]


ROOMS = {  # a package, or a module that stands alone -> what it may import of us, besides itself
    "zsaq.locks": [],
    "zsaq.atomic": ["zsaq.locks"],
    "zsaq.form": [],
    "zsaq.quiet": [],
    "zsaq.method": [],
    "zsaq.foreign": [],
    "zsaq.script": [],
    "zsaq.trimming": [],
    "zsaq.pooling": [],
    "zsaq.sentence_files": ["zsaq.form", "zsaq.pooling"],
    "zsaq.sentence": ["zsaq.pooling", "zsaq.sentence_files"],
    "zsaq.quant": ["zsaq.atomic"],
    "zsaq.run": ["zsaq.atomic", "zsaq.form", "zsaq.quant"],
    "zsaq.io": [
        "zsaq.atomic",
        "zsaq.foreign",
        "zsaq.form",
        "zsaq.quiet",
        "zsaq.run",
        "zsaq.sentence",
        "zsaq.sentence_files",
        "zsaq.quant",
    ],
    "zsaq.train": [*rooms("atomic locks pooling quiet quant")],
    "zsaq.deploy": [*rooms("atomic io quiet quant trimming")],
    "zsaq.report": ["zsaq.atomic", "zsaq.form", "zsaq.io", "zsaq.run", "zsaq.quant"],
    "zsaq.language": [*rooms("foreign train method pooling sentence quant")],
    "zsaq.stream": [*rooms("foreign io language train trimming quant")],
    "zsaq.vision": ["zsaq.atomic", "zsaq.train", "zsaq.method", "zsaq.quant"],
    "zsaq.eval": [*rooms("atomic foreign script io train pooling sentence quant")],
    "zsaq.knowledge": [*rooms("language report io train")],
    "zsaq.keys": [*rooms("subject report train method quant")],
    "zsaq.student": [*rooms("atomic quiet report io train run quant")],
    # The two files that see language and vision.
    "zsaq.subject": [*rooms("knowledge language vision report io train run method sentence quant")],
    "zsaq.closing": [*rooms("subject language train quant")],
    "zsaq.api": [*rooms("closing keys subject student language vision report io train run method quant")],
    "zsaq.synthesizing": [*rooms("subject language report io train run")],
    "zsaq.streaming": [
        *rooms("api subject knowledge stream language report io train run method quant"),
        "zsaq.atomic",
    ],
    "zsaq.comparing": [*rooms("keys subject api student report io train method quant")],
    "zsaq.beforehand": [*rooms("comparing api subject report io train method")],
    "zsaq.launch": [*rooms("beforehand quiet script comparing api student report io train method")],
    # The public page.
    "zsaq": [
        *rooms("synthesizing streaming comparing api student vision deploy report io train"),
        *("zsaq.run", "zsaq.method", "zsaq.quant"),
    ],
    "zsaq_cli": ["zsaq"],
    "recipes": ["zsaq", "recipes.examples", "recipes.benchmarks"],
    "tests": ["zsaq", "zsaq_cli", "recipes", "tests"],
}
SCRIPTS = {"recipes": ["recipes"], "tests": ["tests", "recipes"]}  # whose files are found by their bare names
THIRD_PARTIES = {  # who may import them
    "transformers": [
        *("zsaq.quant", "zsaq.io", "zsaq.quiet", "zsaq.train.trainer", "zsaq.train.recomputing"),
        *("zsaq.report.hub", "zsaq.deploy", "zsaq.language", "zsaq.stream"),
        *("zsaq.student", "zsaq.launch", "zsaq.vision.classifier", "zsaq.vision.models", "zsaq.eval"),
        *("zsaq_cli", "recipes", "tests"),
    ],
    "accelerate": [
        *("zsaq.api", "zsaq.streaming", "zsaq.stream.skeleton", "zsaq.train", "zsaq.language", "zsaq.eval"),
        *("zsaq_cli", "recipes", "tests"),
    ],
    **{pickler: [] for pickler in ("pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve")},
}
FOLDERS = {"zsaq.vision": "vision", "zsaq.eval": "eval"}  # where they are imported from -> where they stand
LONGEST = 250  # lines of a file


def modules() -> dict[str, Path]:
    """Dotted name -> file, of everything but the two links into zsaq/."""
    paths = {}
    for top in ("zsaq", "vision", "eval", "zsaq_cli", "recipes", "tests"):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if parts[:2] in (("zsaq", "vision"), ("zsaq", "eval")):
                continue
            name = ".".join(parts if parts[-1] != "__init__" else parts[:-1])
            base = next((dotted for dotted, folder in FOLDERS.items() if folder == parts[0]), None)
            paths[name if base is None else base + name.removeprefix(parts[0])] = path
    return paths


MODULES = modules()
PACKAGES = {name for name, path in MODULES.items() if path.stem == "__init__"}


def within(module: str, packages: list[str]) -> bool:
    return any(f"{module}.".startswith(f"{package}.") for package in packages)


def room_of(module: str) -> str | None:
    """The longest room that holds it; None for what is not ours."""
    fitting = [room for room in ROOMS if within(module, [room])]
    return max(fitting, key=len, default=None)


def imported(node: ast.AST, module: str) -> list[str]:
    """Full dotted names that a statement of `module` imports, relative ones and those of sibling scripts resolved."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        parts = module.split(".")
        up = len(parts) - node.level + (module in PACKAGES)
        base = ".".join([*parts[: up if node.level else 0], *([node.module] if node.module else [])])
        names = [f"{base}.{alias.name}" for alias in node.names]
    else:
        return []
    return [sibling(name, module) for name in names]


def sibling(name: str, module: str) -> str:
    """The name of a script that stands where `module` finds it by its bare name."""
    for place in SCRIPTS.get(module.split(".")[0], []):
        if f"{place}.{name.split('.')[0]}" in MODULES:
            return f"{place}.{name}"
    return name


def unsafe(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Attribute(value=ast.Name("torch"), attr="load" | "save"):
            yield f"torch.{node.attr} pickles"
        case ast.keyword(arg="trust_remote_code" | "allow_pickle") if ast.unparse(node.value) != "False":
            yield f"{ast.unparse(node)} runs what a stranger wrote"
        case ast.Call(func=ast.Name("__import__") | ast.Attribute(attr="import_module") | ast.Name("import_module")):
            yield "an import by text, which nobody can check"


def violations(source: str, module: str) -> list[str]:
    """What `source`, standing as `module`, does against the house; empty if all is well."""
    room = room_of(module)
    allowed = ROOMS.get(room or "", [])
    breaches = []
    for node in ast.walk(ast.parse(source)):
        complaints = list(unsafe(node))
        for name in imported(node, module):
            third, target = name.split(".")[0], room_of(name)
            if within(name, ["torch.load", "torch.save"]):
                complaints.append(f"{name} pickles")
            if not within(module, THIRD_PARTIES.get(third, [module])):
                complaints.append(f"imports {third}")
            if target not in (None, room) and not within(target or "", allowed):
                complaints.append(f"imports {name}")
        breaches += [f"{module}, line {getattr(node, 'lineno', '?')}: {complaint}" for complaint in complaints]
    return breaches


@pytest.mark.parametrize("module", MODULES)
def test_the_house_stands(module: str) -> None:
    source = MODULES[module].read_text()
    assert violations(source, module) == []
    assert source.count("\n") <= LONGEST, f"{module} is too long: split it"


@pytest.mark.parametrize(
    "module", [m for m in MODULES if m.count(".") == 1 and m.startswith("recipes.") and m not in PACKAGES]
)
def test_a_recipe_imports_nothing_but_zsaq(module: str) -> None:
    names = {name for node in ast.walk(ast.parse(MODULES[module].read_text())) for name in imported(node, module)}
    assert {name.split(".")[0] for name in names} <= {"zsaq", "recipes"}


def test_every_module_of_the_package_stands_in_a_room() -> None:
    alone = [m for m in MODULES if m.count(".") == 1 and m.startswith("zsaq.") and m not in PACKAGES and m not in ROOMS]
    assert alone == [], "move it into a room, or give it one of its own in ROOMS"
    assert (ROOT / "zsaq/vision").resolve() == ROOT / "vision" and (ROOT / "zsaq/eval").resolve() == ROOT / "eval"


def test_no_arrow_runs_in_a_circle() -> None:
    left = {room: {r for r in allowed if r != room} for room, allowed in ROOMS.items()}
    while free := [room for room, needs in left.items() if not needs & left.keys()]:
        for room in free:
            del left[room]
    assert not left


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("zsaq.quant.layers", "from zsaq.io.saving import save"),
        ("zsaq.quant.layers", "from ..train import trainer"),
        ("zsaq.quant.layers", "from zsaq import KL"),
        ("zsaq.train.optim", "def f():\n    import zsaq.language.sam_sga"),
        ("zsaq.quant.config", "import accelerate.utils"),
        ("zsaq.train.pair", "from transformers import AutoModel"),
        ("zsaq.train.trainer", "import zsaq.io"),
        ("zsaq.io.saving", "from zsaq.report.card import Card"),
        ("zsaq", "from .eval.glue import main"),
        ("zsaq.language", "from ..vision import models"),
        ("zsaq.language.sam_sga", "from zsaq.eval import glue"),
        ("zsaq.vision.papers.genie", "from zsaq.language.sam_sga import distill"),
        ("zsaq.vision.papers.genie", "import transformers"),
        ("zsaq.eval.glue", "if True:\n    import zsaq.vision.papers.genie"),
        ("zsaq.eval.glue", "import recipes"),
        ("zsaq_cli.making", "from recipes.job import Job"),
        ("zsaq.comparing", "from zsaq.language.methods import METHODS"),
        ("zsaq.student", "from zsaq.api import quantize"),
        ("recipes.compare", "from zsaq_cli.making import compare"),
        ("zsaq.io.saving", "import pickle"),
        ("tests.test_hub", "from pickle import loads"),
        ("zsaq.io.loading", "state = torch.load(path, weights_only=True)"),
        ("zsaq.io.loading", "from torch import load"),
        ("recipes.one", "AutoModel.from_pretrained(x, trust_remote_code=args.trust)"),
        ("recipes.one", "importlib.import_module(name)"),
    ],
)
def test_a_planted_violation_is_found(module: str, source: str) -> None:
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("zsaq.quant.layers", "from zsaq.quant.config import Grid\nfrom . import quantizer\nimport torch"),
        ("zsaq", "from zsaq.train.trainer import distill"),
        ("zsaq.language.sam_sga", "import transformers, accelerate\nfrom zsaq.train.objectives import KL"),
        ("zsaq.vision.models", "from transformers import AutoModelForImageClassification"),
        ("recipes.one", "from zsaq.eval.glue import score\nfrom zsaq.language.sam_sga import zsaq"),
        ("recipes.one", "from examples import subjects\nfrom benchmarks.cost import main"),
        ("tests.test_zsaq", "import transformers\nfrom zsaq.vision import models"),
        ("zsaq.io.loading", "AutoModel.from_pretrained(x, trust_remote_code=False)"),
    ],
)
def test_what_the_house_allows_is_let_through(module: str, source: str) -> None:
    assert violations(source, module) == []
