"""The recipes' pages need no more than the extras that README.md names for its main job."""

import subprocess
import sys
from pathlib import Path

RECIPES = Path(__file__).parents[1] / "recipes"
PAGES = sorted(path.stem for path in RECIPES.glob("*.py"))
OTHERS = ["sklearn", "peft", "bitsandbytes", "onnx", "onnxruntime", "onnxscript", "compressed_tensors", "scipy"]
IMPORT = """
import importlib, sys
for name in {others}:
    sys.modules[name] = None  # as if it were not installed
sys.path.insert(0, {recipes!r})
for page in {pages}:
    importlib.import_module(page)
"""


def test_pages_are_imported_without_other_extras() -> None:
    assert "zsaq_bert_w2a8" in PAGES
    code = IMPORT.format(others=OTHERS, recipes=str(RECIPES), pages=PAGES)
    done = subprocess.run([sys.executable, "-c", code], cwd=RECIPES.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
