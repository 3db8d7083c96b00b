"""Who may import whom: the arrows of the house, read from the syntax trees; imports inside functions count too."""

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Each core module imports only from those on its left; the public page zsaq/__init__.py stands right of them all.
CORE: Sequence[str] = (
    "config quantizer packing layers plan packed manifest header hub loading saving quantize card readme publish pair "
    "objectives optim sam inundation synthesis calls rounding journal trainer compensation reconstruction page report "
    "export verify bench".split()
)
FORBIDDEN = {  # whose module (by prefix) -> what it never imports; nothing at all imports recipes
    "zsaq.language": ["zsaq.vision", "zsaq.eval", "zsaq_cli"],
    "zsaq.vision": ["zsaq.language", "zsaq.eval", "zsaq_cli"],
    "zsaq.eval": ["zsaq.language", "zsaq.vision", "zsaq_cli"],
    "recipes": [],
    "zsaq_cli": [],
    "zsaq.export": ["zsaq.language", "zsaq.vision", "zsaq.eval"],
    "zsaq": ["zsaq.language", "zsaq.vision", "zsaq.eval", "zsaq_cli"],
}
OUTSIDE = ["zsaq.eval", "zsaq_cli", "recipes", "tests"]
THIRD_PARTIES = {  # who may import them
    "transformers": [
        *(
            f"zsaq.{name}"
            for name in "layers plan header hub loading saving quantize publish trainer language export".split()
        ),
        *(f"zsaq.{name}" for name in ("vision.models", "verify", "bench", "cli")),
        *OUTSIDE,
    ],
    "accelerate": ["zsaq.trainer", "zsaq.journal", "zsaq.language", *OUTSIDE],
    **{pickler: [] for pickler in ("pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve")},
}
PACKAGES = {
    "zsaq": "zsaq",
    "zsaq.language": "zsaq/language",
    "zsaq.export": "zsaq/export",
    "zsaq.vision": "vision",
    "zsaq.eval": "eval",
    "zsaq_cli": "zsaq_cli",
    "recipes": "recipes",
}
MODULES = {
    (name if path.stem == "__init__" else f"{name}.{path.stem}"): path
    for name, folder in PACKAGES.items()
    for path in sorted((ROOT / folder).glob("*.py"))
}
TESTS = {f"tests.{path.stem}": path for path in sorted((ROOT / "tests").glob("*.py"))}


def within(module: str, packages: list[str]) -> bool:
    return any(f"{module}.".startswith(f"{package}.") for package in packages)


def imported(node: ast.AST, module: str) -> list[str]:
    """Full dotted names that a statement of `module` imports, relative ones resolved."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    parts = module.split(".")
    up = len(parts) - node.level + (module in PACKAGES)
    base = ".".join([*parts[: up if node.level else 0], *([node.module] if node.module else [])])
    return [f"{base}.{alias.name}" for alias in node.names]


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
    owner = next((package for package in FORBIDDEN if within(module, [package])), None)
    core = owner == "zsaq"
    left = CORE[: CORE.index(module.removeprefix("zsaq."))] if core and module != "zsaq" else CORE
    found = []
    for node in ast.walk(ast.parse(source)):
        complaints = list(unsafe(node))
        for name in imported(node, module):
            third = name.split(".")[0]
            if within(name, ["torch.load", "torch.save"]):
                complaints.append(f"{name} pickles")
            if not within(module, THIRD_PARTIES.get(third, [module])):
                complaints.append(f"imports {third}")
            if owner and within(name, ["recipes", *FORBIDDEN[owner]]):
                complaints.append(f"imports {name}")
            elif core and within(name, ["zsaq"]) and f"{name}.".split(".")[1] not in left:
                complaints.append(f"imports {name}, which does not stand left of it")
        found += [f"{module}, line {getattr(node, 'lineno', '?')}: {complaint}" for complaint in complaints]
    return found


@pytest.mark.parametrize("module", [*MODULES, *TESTS])
def test_the_house_stands(module: str) -> None:
    source = (MODULES | TESTS)[module].read_text()
    assert violations(source, module) == []
    assert source.count("\n") <= 300, f"{module} is too long: split it"


def test_every_core_module_has_its_place() -> None:
    unlisted = [
        m for m in MODULES if m.count(".") == 1 and within(m, ["zsaq"]) and m not in PACKAGES and m[5:] not in CORE
    ]
    assert unlisted == [], "give each a place in CORE"
    assert (ROOT / "zsaq/vision").resolve() == ROOT / "vision" and (ROOT / "zsaq/eval").resolve() == ROOT / "eval"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("zsaq.layers", "from zsaq.hub import save"),
        ("zsaq.layers", "from . import trainer"),
        ("zsaq.layers", "from .objectives import KL"),
        ("zsaq.pair", "from zsaq import KL"),
        ("zsaq.optim", "def f():\n    import accelerate.utils"),
        ("zsaq.config", "from transformers import AutoModel"),
        ("zsaq.trainer", "import zsaq.language.zsaq"),
        ("zsaq", "from zsaq import vision"),
        ("zsaq", "from .eval.glue import main"),
        ("zsaq.language", "from ..vision import models"),
        ("zsaq.language.zsaq", "from zsaq.eval import glue"),
        ("zsaq.vision.genie", "from zsaq.language.zsaq import distill"),
        ("zsaq.vision.genie", "import transformers"),
        ("zsaq.eval.glue", "if True:\n    import zsaq.vision.genie"),
        ("recipes.one", "from recipes.two import main"),
        ("zsaq.eval.glue", "import recipes"),
        ("zsaq.hub", "import pickle"),
        ("tests.test_hub", "from pickle import loads"),
        ("zsaq.hub", "state = torch.load(path, weights_only=True)"),
        ("zsaq.hub", "from torch import load"),
        ("recipes.one", "AutoModel.from_pretrained(x, trust_remote_code=args.trust)"),
        ("recipes.one", "importlib.import_module(name)"),
    ],
)
def test_a_planted_violation_is_found(module: str, source: str) -> None:
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("zsaq.layers", "from zsaq.config import Grid\nfrom . import quantizer\nimport torch"),
        ("zsaq", "from zsaq.trainer import distill"),
        (
            "zsaq.language.zsaq",
            "import transformers, accelerate\nfrom zsaq import KL\nfrom .generator import Generator",
        ),
        ("zsaq.vision.models", "from transformers import AutoModelForImageClassification"),
        ("recipes.one", "from zsaq.eval.glue import score\nfrom zsaq.language.zsaq import Zsaq"),
        ("tests.test_zsaq", "import transformers\nfrom zsaq.vision import models"),
        ("zsaq.hub", "AutoModel.from_pretrained(x, trust_remote_code=False)"),
    ],
)
def test_what_the_house_allows_is_let_through(module: str, source: str) -> None:
    assert violations(source, module) == []
