"""Recipes, benchmarks and examples: what a user can mend is one line and exit code 2, from the first import on."""

import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from commands import toys_in
from faults import BINARY

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "recipes"
SWEEP = "benchmarks/architectures.py"  # without arguments it works, for an hour
NEEDLESS = [
    f"{name}.py 2"
    for name in ("cost", "speed", "suitability", "streaming", "training_memory", "language_models", "encoders")
]
PEERS = [f"{path.name} 2" for path in (RECIPES / "peers").glob("*.py")]  # other tools, which are not asked for yet
SCRIPTS = sorted(
    name
    for path in RECIPES.rglob("*.py")
    if "__main__" in path.read_text(encoding="utf-8") and (name := str(path.relative_to(RECIPES))) != SWEEP
)
TEXT = "--task sst2 --data_dir {toys} --output_dir {out}"
VISION = "vision_quantize.py --teacher {toys}/resnet --method rtn-noise --output_dir {out}"
LINES = [
    "zsaq_bert_w2a8.py --teacher {toys}/bert",
    "zsaq_bert_w2a8.py --teacher /nowhere " + TEXT,
    "zsaq_bert_w2a8.py --teacher {junk} " + TEXT,
    "zsaq_bert_w2a8.py --teacher {toys}/opt " + TEXT,
    "zsaq_bert_w2a8.py --teacher no/such/model " + TEXT,
    "zsaq_bert_w2a8.py --teacher {toys}/bert --steps 0 " + TEXT,
    "zsaq_bert_w2a8.py --teacher {toys}/bert --lr nan " + TEXT,
    "zsaq_bert_w2a8.py --teacher {toys}/bert --trackers magic " + TEXT,
    "zsaq_bert_w2a8.py --teacher {toys}/bert --generator {junk} " + TEXT,
    "zsaq_bert_w2a8.py --teacher {toys}/bert --split none " + TEXT,
    "zsaq_bert_w2a8.py --teacher {toys}/bert --task magic --data_dir {toys} --output_dir {out}",
    "zsaq_bert_w2a8.py --teacher {toys}/bert --task sst2 --data_dir {toys} --output_dir {file}",
    "zsaq_bert_w4a8.py --teacher {junk} " + TEXT,
    "zsaq_causal_w4a8.py --teacher {toys}/opt --text {file} --output_dir {out}",
    "zsaq_causal_w4a8.py --teacher {toys}/opt --text /nowhere --output_dir {out}",
    "zsaq_causal_w4a8.py --teacher {toys}/opt --text {toys}/validation.jsonl --window 0 --output_dir {out}",
    "zsaq_causal_w4a8.py --teacher {toys}/opt --text {toys}/validation.jsonl --window 99999 --output_dir {out}",
    "zsaq_causal_w4a8.py --teacher {toys}/bert --text {toys}/validation.jsonl --output_dir {out}",
    "compare.py classifier --methods rtn --output_dir {out}",
    "compare.py causal --methods rtn --teacher {toys}/opt --output_dir {out}",
    "compare.py causal --methods rtn --teacher {junk} --text {file} --output_dir {out}",
    "compare.py classifier --methods rtn --teacher {toys}/bert --bits w0 " + TEXT,
    "compare.py classifier --methods rtn --teacher {toys}/bert --seeds x " + TEXT,
    "compare.py classifier --methods rtn-real --teacher {toys}/bert " + TEXT,
    VISION + " --teacher {junk}",
    VISION + " --size 0",
    VISION + " --size -5",
    VISION + " --mean 1 2 --size 16 --data_dir {toys}/images",
    VISION + " --data_dir {file}",
    VISION + " --data_dir {junk}",
    VISION + " --data_dir /nowhere",
    VISION + " --data_dir {toys}/images --split none/none",
    VISION + " --image_steps x",
    "vision_compare.py cifar --methods zeroq --output_dir {out}",
    "benchmarks/image_makers.py cifar {weights} --size 32",
    "vision_compare.py cifar --methods zeroq --weights {file} --test {file} --output_dir {out}",
    "vision_compare.py mobilenet --methods zeroq --weights {file} --test {file} --output_dir {out}",
    "vision_compare.py mobilenet --methods zeroq --weights {file} --test {file} --limit 0 --output_dir {out}",
    "vision_compare.py cifar --methods zeroq --weights {weights} --test {file} --output_dir {out}",
    "benchmarks/cost.py --teacher {junk} --generator {junk}",
    "benchmarks/cost.py --teacher {toys}/bert --generator {junk}",
    "benchmarks/cost.py --teacher {toys}/bert --generator {toys}/opt --steps 0",
    "benchmarks/cost.py --teacher {toys}/bert --generator {toys}/opt --bits x",
    "benchmarks/language_models.py {junk} --rows rtn:w4a16 --text {file} --output_dir {out} --one",
    "benchmarks/language_models.py {toys}/opt --rows rtn:w9 --text {file} --output_dir {out} --one",
    "benchmarks/language_models.py {toys}/opt --rows float:16 --text {file} --output_dir {out} --one",
    "benchmarks/streaming.py --model /nowhere",
    "benchmarks/streaming.py --model {junk} --methods rtn --here",
    "benchmarks/streaming.py --model {toys}/opt --methods rtn --rows 0",
    "benchmarks/training_memory.py --teacher /nowhere --rows 0",
    "benchmarks/speed.py bert-base --bits w9 --output_dir {out}",
    "benchmarks/speed.py bert-base --bits w4a8 --output_dir {out} --repeats -1",
    "benchmarks/vision_cost.py --teacher {file}",
    "benchmarks/vision_cost.py --teacher {weights}",
    "benchmarks/image_makers.py cifar {file}",
    "benchmarks/image_makers.py lite0 {weights}",
    "examples/pretrain_opt.py --text /nowhere --output_dir {out}",
    "examples/pretrain_opt.py --text {file} --output_dir {out}",
    "examples/pretrain_opt.py --text {parquet} --output_dir {out}",
    "examples/pretrain_opt.py --text {toys}/validation.jsonl --output_dir {out} --tokenizer {junk}",
    "examples/pretrain_opt.py --text {toys}/validation.jsonl --output_dir {out} --tokenizer bpe:300",
    "examples/pretrain_opt.py --text {toys}/validation.jsonl --output_dir {out} --hidden 100",
    "examples/pretrain_opt.py --text {toys}/validation.jsonl --output_dir {out} --steps 0",
    "examples/pretrain_opt.py --text {toys}/validation.jsonl --output_dir {file}",
    "examples/pretrain_vit.py --train {parquet} --output_dir {out}",
    "examples/pretrain_vit.py --train /nowhere --output_dir {out}",
    "examples/pretrain_vit.py --train {toys}/images --output_dir {out}",
    "examples/pretrain_vit.py --train {toys}/images --output_dir {out} --size 33",
    "examples/pretrain_vit.py --train {toys}/images --output_dir {out} --seed -1",
]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("recipes")
    places = {"toys": toys_in(root / "toys"), "junk": root / "junk", "file": root / "file"}
    places |= {"parquet": root / "junk.parquet", "weights": root / "w.safetensors"}
    places["junk"].mkdir()
    for name in "01":
        (places["toys"] / "few" / name).mkdir(parents=True)
        Image.new("RGB", (20, 20)).save(places["toys"] / "few" / name / "one.png")
    (places["junk"] / "config.json").write_bytes(b"[" * 10**5)
    Image.new("RGB", (4, 4)).save(places["junk"] / "a.png")
    for name in ("file", "parquet", "weights"):
        places[name].write_bytes(BINARY)
    return places


@pytest.fixture
def last_line(
    places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[[str], str]:
    """What a recipe that is called so ends with: exit code 2, and nothing written."""

    def of(line: str) -> str:
        script, *words = [word.format(**places, out=tmp_path / "out") for word in line.split(" ")]
        monkeypatch.setattr(sys, "argv", [script, *words])
        monkeypatch.syspath_prepend(str(ROOT))
        monkeypatch.syspath_prepend(str(RECIPES))
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(RECIPES / script), run_name="__main__")
        *_, last = capfd.readouterr().err.rstrip("\n").split("\n")
        assert left.value.code == 2 and ("error: " in last), last
        assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())
        return last

    return of


@pytest.mark.parametrize("line", LINES)
def test_a_fault_is_one_line(line: str, last_line: Callable[[str], str]) -> None:
    last_line(line)


BERT, DIGITS = "zsaq_bert_w2a8.py", "vision_compare.py digits-vit --methods rtn-noise"
CIFAR = "vision_compare.py cifar --methods zeroq --weights {weights} --test {file}"
UNREAD = [  # flags that nobody would read
    (f"{DIGITS} --test {{file}} --real {{file}}", "digits-vit takes no such flag: leave --test, --real off"),
    (f"{DIGITS} --limit 5", "leave --limit off"),
    (f"{CIFAR} --size 32", "cifar takes --weights, --test, --real: leave --size off"),
    (f"{CIFAR} --size 224", "leave --size off"),  # the default, which nobody reads either
    (f"{CIFAR} --mean 0 0 0", "leave --mean off"),
    ("vision_quantize.py --resize 40", "digits-resnet takes no such flag: leave --resize off"),
    ("vision_quantize.py --teacher lite0 --weights {file} --split train", "leave --split off"),
    ("vision_quantize.py --teacher lite0", "lite0 needs --weights"),
    (f"{VISION} --limit 3", "a folder or Hub id takes --data_dir, "),
    (f"{VISION} --mean 1 1 1", "--mean without --size: the model's own image processor is taken; give both, or none"),
    (f"{VISION} --split train", "--split without --data_dir"),
    ("compare.py embedded --methods rtn --teacher {toys}/bert", "embedded takes --generator: leave --teacher off"),
    (f"compare.py classifier --methods rtn --teacher {{toys}}/bert --window 9 {TEXT}", "leave --window off"),
    ("compare.py causal --methods rtn --teacher {toys}/opt --text {file} --split test", "leave --split off"),
    (f"{BERT} --split test", "--data_dir, --split and --teacher_bits with them"),
    (f"{BERT} --teacher_bits 8", "--data_dir, --split and --teacher_bits with them"),
    (f"{VISION} --image_column x --label_column label", "--image_column, --label_column without --data_dir and --real"),
    ("vision_quantize.py --teacher lite0 --weights {file} --limit 3", "--limit without --data_dir"),
    ("examples/pretrain_opt.py --text {file} --arch gpt2 --embed 128", "--embed is OPT's: leave it off for gpt2"),
]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--size 16 --std 0 0 0", "--std 0.0 0.0 0.0: give finite numbers"),
        ("--size 16 --mean nan 0 0", "--mean nan 0.0 0.0 and --std"),
        ("--size 32 --resize 16", "--resize 16 is below --size 32"),
    ],
)
def test_flags_that_make_no_processor_are_refused(flags: str, said: str, last_line: Callable[[str], str]) -> None:
    assert said in last_line(f"{VISION} {flags}")


CAUSAL = "compare.py causal --teacher {toys}/opt --text {toys}/validation.jsonl --methods rtn gptq-real"
EARLY = [  # before the teacher is trained, loaded or asked
    (f"{BERT} --bits banana", "'banana' is no quantization"),
    (f"{BERT} --foo 3", "none of these methods has the option foo"),
    (f"{BERT} --push_to_hub x", "'x' names no namespace"),
    ("compare.py embedded --methods rtn --bits banana", "'banana' is no quantization"),
    ("compare.py embedded --methods rtn --preset psaq", "presets are for images"),
    ("vision_quantize.py --bits banana", "'banana' is no text of a preset"),
    ("vision_quantize.py --preset magic", "preset is 'magic'"),
    (f"{DIGITS} --seeds -1", "seed is -1"),
    (CAUSAL, "gptq-real without --real_text: give real data"),
    (f"{CAUSAL} --real_text /nowhere", "--real_text is '/nowhere', and there is no such file"),
    (
        f"{CAUSAL} --real_text {{toys}}/validation.jsonl --window 3",
        "--window 3 leaves no tokens for rows",
    ),
    (f"{VISION} --method rtn-real", "rtn-real without --real: give real data"),
    (f"{VISION} --method rtn-real --real /nowhere", "'/nowhere' does not exist"),
    (f"{CIFAR} --methods zeroq synq-real", "synq-real without --real"),
    (f"{CIFAR} --real /nowhere", "'/nowhere' does not exist"),
    ("vision_compare.py lite0 --methods zeroq --weights {weights} --test {file} --real /nowhere", "does not exist"),
    ("examples/pretrain_vit.py --train {toys}/images --batch 4 --test /nowhere", "'/nowhere' does not exist"),
    ("examples/pretrain_vit.py --train {toys}/few --batch 1 --test {toys}/images", "has the label 3, and"),
    ("examples/pretrain_opt.py --text /nowhere --tokenizer bpe:100", "a number of tokens from 258"),
]


@pytest.mark.parametrize(("line", "said"), [*UNREAD, *EARLY])
def test_it_is_told_before_anything_is_spent(
    line: str, said: str, last_line: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("it was begun")

    for place in ("zsaq.launch.quantize", "zsaq.launch.compare", "torch.Tensor.backward"):
        monkeypatch.setattr(place, never)
    assert said in last_line(f"{line} --output_dir {{out}}")


ABSENT = """
import contextlib, io, runpy, sys
for name in ("datasets", "pyarrow", "PIL", "sklearn", "matplotlib"):
    sys.modules[name] = None  # as if it were not installed
sys.path[:0] = [{root!r}, {recipes!r}]
for script in {scripts!r}:
    said, sys.argv = io.StringIO(), [script]
    try:
        with contextlib.redirect_stderr(said):
            runpy.run_path(script, run_name="__main__")
        code = 0
    except SystemExit as left:
        code = left.code
    print(script, code, repr(said.getvalue()))
    for name in [n for n in sys.modules if n.split(".")[0] in ("examples", "recipes", "zsaq_bert_w2a8")]:
        del sys.modules[name]
"""


def test_an_extra_that_is_missing_is_one_line() -> None:
    """Not of those that need none, which then miss their arguments."""
    scripts = [str(RECIPES / script) for script in SCRIPTS]
    code = ABSENT.format(root=str(ROOT), recipes=str(RECIPES), scripts=scripts)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert len(lines) == len(SCRIPTS) > 10
    for line in lines:
        needs_none = any(name in line for name in (*NEEDLESS, *PEERS))
        assert needs_none or (" 3 'error: " in line and line.count("\\n") == 1 and "zsaq[all]" in line), line
