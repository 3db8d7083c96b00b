"""Real prose without a download: what every CPython carries in its own standard library, read and never imported.

The task: tell from one sentence which part of Python it documents. Its sentences are docstrings of the standard library
and, for the language itself, `pydoc_data.topics`. The split is by document: all sentences of one docstring (or of one
paragraph of a topic) go to the same side, by a CRC of its module and position, so that it is the same on every machine.
Other docstrings of the same module may be on the other side; a sentence, compared by its letters and digits, never is.

The generator's prose is another text: the `#` comments of the same sources, less every sentence that the task has too.
"""

import ast
import re
import sysconfig
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

AREAS = {
    "language": "pydoc_data",
    "mail": "email mailbox smtplib imaplib poplib",
    "asyncio": "asyncio",
    "testing": "unittest doctest",
    "logging": "logging",
    "imports": "importlib pkgutil zipimport runpy",
    "xml": "xml",
    "web": "http urllib xmlrpc wsgiref",
    "types": "typing types enum dataclasses",
    "numbers": "_pydecimal decimal fractions statistics random numbers",
    "inspection": "inspect pydoc ast dis symtable tokenize",
    "addresses": "ipaddress",
    "diff": "difflib",
    "parallel": "threading multiprocessing concurrent queue",
    "archives": "tarfile zipfile gzip bz2 lzma",
    "streams": "_pyio io codecs",
    "debugger": "pdb bdb traceback trace",
    "dates": "datetime _pydatetime calendar zoneinfo _strptime",
    "options": "argparse optparse configparser getopt",
    "paths": "os posixpath ntpath genericpath pathlib shutil tempfile glob fnmatch",
    "sockets": "socket socketserver ssl selectors ftplib",
}
SKIPPED = {
    *("site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "encodings", "ensurepip", "turtledemo")
}
HELD_OUT = 0.15
# a comment or a string, so that neither quotes in comments nor "#" in strings mislead (much faster than tokenize)
TOKEN = re.compile(r"""#[^\n]*|(\"{3}|'{3})(?:\\.|[^\\])*?\1|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'""", re.DOTALL)


@dataclass(frozen=True)
class Corpus:
    """`train`, `test`: rows {"sentence": str, "label": index into names}; `comments`: the generator's sentences."""

    names: list[str]
    train: list[dict]
    test: list[dict]
    comments: list[str]


def key(sentence: str) -> str:
    """What makes two sentences the same: their letters and digits."""
    return re.sub(r"[^a-z0-9]+", " ", sentence.lower()).strip()


def sentences(text: str) -> Iterator[str]:
    """The sentences of 6 to 40 words in a docstring or comment; code, tables and signatures are left out."""
    text = re.sub(r"^[ \t]*(>>>|\.\.\.).*$", "", text, flags=re.MULTILINE)
    for paragraph in re.split(r"\n\s*\n|\n(?=\s*[-*] )", text):
        paragraph = re.sub(r"\s+", " ", paragraph).strip(" -*")
        for sentence in re.split(r"(?<=[.!?;:])\s+(?=[A-Z\"'`(*])", paragraph):
            words = [word.strip("*`.,;:'\"()") for word in sentence.split()]
            if 6 <= len(words) <= 40 and sum(word.isalpha() for word in words) >= 0.75 * len(words):
                yield sentence


def docstrings(tree: ast.Module) -> list[str]:
    """The docstrings of a module and of all that it defines; only statements are walked, for speed."""
    nodes: list[ast.AST] = [tree]
    for node in nodes:
        nodes += (child for child in ast.iter_child_nodes(node) if isinstance(child, (ast.stmt, ast.excepthandler)))
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [text for node in nodes if isinstance(node, owners) and (text := ast.get_docstring(node))]


def topics(tree: ast.Module) -> list[str]:
    """The paragraphs of `pydoc_data.topics`, a dictionary of strings."""
    texts = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    return [paragraph for text in texts for paragraph in text.split("\n\n")]


def comment_or_blank(token: re.Match[str]) -> str:
    return token[0] if token[0].startswith("#") else "\n" * token[0].count("\n")


def comments(source: str) -> list[str]:
    """The texts of the comments that have their lines for themselves; those on consecutive lines are joined."""
    runs, last = [], -1
    for number, line in enumerate(TOKEN.sub(comment_or_blank, source).split("\n"), 1):
        if line.lstrip().startswith("#"):
            text = line.lstrip(" \t\f#!")
            if last == number - 1:
                runs[-1] += "\n" + text
            else:
                runs.append(text)
            last = number
    return runs


def read_corpus(library: Path | None = None) -> Corpus:
    """The corpus of this Python's standard library (or of the one in `library`); about 4 seconds.

    Raises `ValueError` if the library's sources are not there or an area has fewer than 100 sentences.
    """
    library = library or Path(sysconfig.get_paths()["stdlib"])
    areas = {module: label for label, modules in enumerate(AREAS.values()) for module in modules.split()}
    labels: dict[str, int | None] = {}
    rows: dict[str, tuple[str, bool]] = {}
    remarks: list[str] = []
    tops = [top for top in library.glob("*") if top.name not in SKIPPED]
    for path in sorted(file for top in tops for file in (top.rglob("*.py") if top.is_dir() else [top])):
        name = path.relative_to(library)
        if path.suffix != ".py" or SKIPPED.intersection(name.parts):
            continue
        source = path.read_text("utf8", errors="replace")
        remarks += comments(source)
        module = name.parts[0].removesuffix(".py")
        if module not in areas:
            continue
        tree = ast.parse(source)
        for position, text in enumerate(topics(tree) if name.stem == "topics" else docstrings(tree)):
            held_out = zlib.crc32(f"{name.as_posix()}:{position}".encode()) < HELD_OUT * 2**32
            for sentence in sentences(text):
                same = key(sentence)
                rows.setdefault(same, (sentence, held_out))
                # a sentence that two areas share tells nothing
                labels[same] = areas[module] if labels.get(same, areas[module]) == areas[module] else None
    data = [
        (held_out, {"sentence": text, "label": labels[same]})
        for same, (text, held_out) in rows.items()
        if labels[same] is not None
    ]
    train, test = ([row for held_out, row in data if held_out is side] for side in (False, True))
    counts = {name: sum(row["label"] == label for _, row in data) for label, name in enumerate(AREAS)}
    if min(counts.values()) < 100:
        raise ValueError(
            f"the standard library in {library} has too little prose ({counts} sentences): its .py sources must be "
            "installed (some distributions keep them in a package of their own); give --teacher and --generator instead"
        )
    fresh = {key(text): text for remark in remarks for text in sentences(remark) if key(text) not in rows}
    return Corpus(list(AREAS), train, test, list(fresh.values()))
