"""What users may give the command line by mistake: folders that are no models, files that are no data, wild values."""

import json
import random
from pathlib import Path
from typing import Any

Value = str | Path
BINARY = bytes(range(256)) * 8
DEEP = b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
CONFIGS = {  # of a folder -> what its config.json holds
    "list": b"[]", "null": b"null", "number": b"7", "empty": b"", "binary": BINARY, "cut": b'{"model_type": "ber',
    "deep": DEEP, "object": b"{}", "unknown": b'{"model_type": "nope"}',
    "kind": b'{"model_type": 7}', "utf16": '{"model_type": "bert"}'.encode("utf-16"), "nan": b'{"model_type": NaN}',
}  # fmt: skip
CHANGES: list[dict[str, Any]] = [  # of a whole model's config
    {"architectures": None}, {"architectures": "Bert"}, {"architectures": ["Nope"]}, {"architectures": [7]},
    {"hidden_size": -1}, {"hidden_size": "x"}, {"hidden_size": 0}, {"hidden_size": 17}, {"num_hidden_layers": -3},
    {"vocab_size": 3}, {"id2label": {"0": "a"}}, {"id2label": {"5": "a", "9": "b"}}, {"id2label": 7},
    {"id2label": {"x": "a"}}, {"model_type": "gpt2"}, {"num_attention_heads": 0}, {"hidden_act": "nope"},
    {"auto_map": {"AutoModelForSequenceClassification": "evil.Evil"}}, {"dtype": "nope"}, {"torch_dtype": 7},
    {"quantization_config": {"quant_method": "zsaq"}}, {"quantization_config": 7}, {"attn_implementation": "nope"},
    {"quantization_config": {"quant_method": "nope"}}, {"max_position_embeddings": 1}, {"num_labels": 10},
]  # fmt: skip


def broken_folders(root: Path, whole: Path) -> list[Path]:
    """Folders, and files in their place, of which no model can be made; `whole`: one that is."""
    made: list[Path] = []

    def folder(name: str, **files: bytes) -> Path:
        (root / name).mkdir(parents=True)
        for file, content in files.items():
            (root / name / file.replace("__", ".")).write_bytes(content)
        made.append(root / name)
        return root / name

    for name, content in CONFIGS.items():
        folder(f"config-{name}", config__json=content)
    kept = {path.name: path.read_bytes() for path in whole.iterdir() if path.is_file() and path.suffix != ".md"}
    config = json.loads(kept["config.json"])
    for number, change in enumerate(CHANGES):
        place = folder(f"changed-{number}")
        for file, content in (kept | {"config.json": json.dumps(config | change).encode()}).items():
            (place / file).write_bytes(content)
    for name in sorted(kept):
        kinds: dict[str, bytes | None] = {"gone": None, "junk": BINARY, "half": kept[name][: len(kept[name]) // 2]}
        kinds |= {"deep": DEEP, "list": b"[7]"} if name.endswith(".json") else {"none": b""}
        for kind, content in kinds.items():
            place = folder(f"{name}-{kind}")
            for file, own in (kept | {name: content}).items():
                if own is not None:
                    (place / file).write_bytes(own)
    folder("empty")
    folder("模型 ünï\nx[red]", config__json=b"{}")
    (root / "file").write_bytes(BINARY)
    (root / "dangling").symlink_to(root / "nowhere")
    (root / "loop").symlink_to(root / "loop")
    return [*made, root / "file", root / "dangling", root / "loop", root / "nowhere", root / "file" / "below"]


def broken_data(root: Path) -> list[Path]:
    """Files and folders of which no data can be read."""
    root.mkdir()
    contents = {
        "binary.txt": BINARY, "empty.txt": b"", "utf16.txt": "some words".encode("utf-16"), "short.txt": b"word",
        "junk.parquet": BINARY, "empty.parquet": b"", "a.csv": b"image,label\n../x.png,0\n", "deep.json": b"[" * 10**5,
    }  # fmt: skip
    for name, content in contents.items():
        (root / name).write_bytes(content)
    for kind, content in {
        "jsonl": b"[" * 10**5, "tsv": b"sentence\tlabel\n\xff\t1\n", "parquet": BINARY,
    }.items():  # fmt: skip
        (root / kind).mkdir()
        (root / kind / f"validation.{kind}").write_bytes(content)
    for name in ("cats", "dogs"):
        (root / "classes" / name).mkdir(parents=True)
        (root / "classes" / name / "one.png").write_bytes(BINARY)
    (root / "nothing").mkdir()
    return [*sorted(root.iterdir()), root / "none", root / "none.parquet"]


PLACES: list[Value] = ["..", ".", "/", "~"]  # whole trees, which hold no model
IDS: list[Value] = [
    *("", " ", "~nobody/x", "a/b/c", "no such/model", "-x", "--", "x" * 5000, "a\nb", "a\0b", "[red]x[/]", "C:\\x"),
    *("模型/ü", "https://example.com/x", "hf://x/y", "/dev/null", "a//b", "../x", "gpt2", "%s{}", "a/b@main"),
]
NUMBERS: list[Value] = ["-1", "0", "1e9", "x", "", "nan", "inf", "9" * 30, "-" + "9" * 30, "1.5", "٣", "0x10", "1__0"]
WORDS: list[Value] = [
    *(
        "",
        " ",
        "magic",
        "W9A99",
        "w4a8g-1",
        "w0a0",
        "w4a8g999999999999",
        "[red]",
        "模型",
        "\n",
        ",",
        "w4a8,",
        "../x",
        "*",
    ),
]


class Commands:
    """Command lines over a folder of toys (`commands.toys_in`) that would work, but for one or two wrong values."""

    def __init__(self, toys: Path, work: Path) -> None:
        self.toys, self.work, self.count = toys, work, 0
        self.teachers = broken_folders(work / "teachers", toys / "bert")
        self.folders = [*self.teachers, *broken_folders(work / "students", toys / "student")]
        self.data = broken_data(work / "data")

    def line(self, rng: random.Random) -> list[Value]:
        """One at random: the values of a scene, of which one or two are replaced, or another option is added."""
        command, *parts = rng.choice(self.scenes())
        words = [(flag, kind, value) for flag, kind, value in parts]
        if rng.random() < 0.4:
            words.append(rng.choice(self.options()))
        for _ in range(rng.choice([1, 1, 2])):
            place = rng.randrange(len(words))
            flag, kind, _ = words[place]
            words[place] = flag, kind, self.wrong(rng, kind)
        line = [command, *(word for flag, _, value in words for word in ((flag, value) if flag else (value,)))]
        return line + (["--json"] if rng.random() < 0.5 else [])

    def wrong(self, rng: random.Random, kind: str) -> Value:
        file = self.work / "data" / "binary.txt"
        pools: dict[str, list[Value]] = {
            "folder": [*self.folders, *self.data, *IDS, *PLACES, self.toys / "resnet", self.toys / "opt"],
            "student": [*self.teachers, *self.data, *IDS, *PLACES],
            "data": [*self.data, *self.teachers[:3], *IDS, self.toys / "images", self.toys],
            "number": NUMBERS, "word": [*WORDS, *NUMBERS], "task": ["mrpc", "stsb", "mnli", "all", *WORDS],
            "out": [file, file / "x", self.toys / "bert", "/proc/zsaq", "a\0b", "x" * 5000, ""],
        }  # fmt: skip
        return rng.choice(pools[kind])

    def fresh(self) -> Path:
        self.count += 1
        return self.work / "out" / str(self.count)

    def options(self) -> list[tuple[str, str, Value]]:
        """(flag, kind, a right value) of what many commands take."""
        return [
            ("--effort", "word", "light"), ("--seed", "number", "1"), ("--preset", "word", "uniform"),
            ("--steps", "number", "1"), ("--lr", "number", "0.1"), ("--calibration", "number", "1"),
            ("--generator", "folder", self.toys / "opt"), ("--size", "number", "16"), ("--images", "number", "2"),
            ("--split", "word", "validation"), ("--limit", "number", "2"), ("--window", "number", "8"),
            ("--batch_size", "number", "2"), ("--at_least", "number", "0.1"), ("--license", "word", "mit"),
            ("--teacher", "folder", self.toys / "bert"), ("--base", "folder", self.toys / "bert"),
            ("--repeat", "folder", self.toys / "student"), ("--target", "out", self.fresh()),
        ]  # fmt: skip

    def scenes(self) -> list[list[Any]]:
        """Commands that work: the command, then (flag or none, kind, value); but those that take long name no model."""
        toys, out, bits = self.toys, ("--output_dir", "out", self.fresh()), ("--bits", "word", "w4a8")
        text, task = ("", "folder", toys / "bert"), [("--task", "task", "sst2"), ("--data_dir", "data", toys)]
        causal, student = ("", "folder", toys / "opt"), ("", "folder", toys / "student")
        words, pictures = ("--text", "data", toys / "validation.jsonl"), ("--images", "data", toys / "images")
        long = ("", "student", self.teachers[0])
        return [
            ["quantize", text, out, bits, ("--method", "word", "rtn")],
            ["quantize", causal, out, bits, ("--method", "word", "gptq"), ("--calibration", "number", "1")],
            ["quantize", ("", "folder", toys / "resnet"), out, bits, ("--method", "word", "rtn-noise")],
            ["compare", text, out, bits, ("--methods", "word", "rtn"), ("--seeds", "number", "0"), *task],
            ["compare", causal, out, bits, ("--methods", "word", "rtn"), words, ("--limit", "number", "2")],
            ["methods", ("", "word", "rtn")],
            ["inspect", text, ("--base", "folder", toys / "bert"), ("--words", "number", "3")],
            ["inspect", student, ("--base", "folder", toys / "bert"), ("--forget", "out", self.fresh())],
            ["fit", ("", "data", toys / "validation.jsonl"), text, ("--base", "folder", toys / "bert")],
            ["evaluate", student, *task], ["evaluate", causal, words, ("--window", "number", "8")],
            ["evaluate", ("", "folder", toys / "resnet"), pictures],
            ["export", student, ("--to", "word", "compressed-tensors"), ("--target", "out", self.fresh())],
            ["export", long, ("--to", "word", "onnx")], ["verify", long],
            ["bench", long, ("--repeats", "number", "1"), ("--shape", "word", "1x2")],
            ["report", student, ("--output", "out", self.fresh())],
            ["push", student, ("", "word", "you/model"), ("--base", "folder", toys / "bert")],
        ]  # fmt: skip
