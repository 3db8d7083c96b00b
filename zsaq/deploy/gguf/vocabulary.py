"""A tokenizer's own files as llama.cpp reads them: tokens, their kinds, merges or scores, and the chat template."""

import json
from pathlib import Path
from typing import Any, Final

import gguf
from transformers import PreTrainedTokenizerBase

from zsaq.io.readers import tokenizer_of

LIKE: Final = "give --like FILE.gguf, a file of the same model, whose tokenizer is taken"
CONTRACTED: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
TAIL: Final = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
OURS: Final = (  # told of the student, or of the file
    *("general.architecture", "general.file_type", "general.quantization_version", "general.alignment"),
)
SPACES: Final = ("Replace", "Prepend", "Split", "Metaspace")  # what a normalizer and a splitter do to letters
BYTES: Final = ("NFC", "Split", "Digits", "ByteLevel")  # and to bytes
FLAGS: Final = ("lstrip", "rstrip", "single_word")  # of added tokens: they take spaces along, or are whole words alone
SPLITS: Final = {CONTRACTED + "{1,3}" + TAIL: "llama-bpe", CONTRACTED + TAIL: "qwen2"}
"""How text is split before bytes are merged, by its regular expression, as llama.cpp names it."""


def splitting(told: Any) -> str:
    """What llama.cpp calls this pre_tokenizer of tokenizer.json. Raises ValueError for one that it has no name for."""
    parts = told.get("pretokenizers", [told]) if isinstance(told, dict) else []
    kinds = [part.get("type") for part in parts]
    spaced = any(part.get("add_prefix_space") for part in parts)
    whole = all(part.get("behavior", "Isolated") == "Isolated" and not part.get("invert") for part in parts)
    if not spaced and kinds == ["ByteLevel"] and parts[0].get("use_regex", True):
        return "gpt-2"
    if (
        not spaced
        and kinds == ["Digits", "ByteLevel"]
        and parts[0].get("individual_digits")
        and (parts[1].get("use_regex", True))
    ):
        return "smollm"
    regex = parts[0].get("pattern", {}).get("Regex") if kinds == ["Split", "ByteLevel"] else None
    if not spaced and whole and regex in SPLITS and not parts[1].get("use_regex", True):
        return SPLITS[regex]
    raise ValueError(f"llama.cpp has no known name for the way in which its tokenizer splits text, {kinds}; {LIKE}")


def pieces(told: dict[str, Any], size: int) -> tuple[list[str], list[int]]:
    """`size` tokens and their kinds, by id; those that no file names are unused. Raises ValueError for more."""
    tokens = [f"[PAD{i}]" for i in range(size)]
    kinds = [int(gguf.TokenType.UNUSED)] * size
    vocabulary, added = told["model"]["vocab"], told.get("added_tokens", [])
    if (last := max([*vocabulary.values(), *(token["id"] for token in added)])) >= size:
        raise ValueError(
            f"its tokenizer has {last + 1} tokens, and its table {size}: llama.cpp would read beyond it; take the "
            "tokenizer that this model was saved with"
        )
    for token, i in vocabulary.items():
        whole_byte = len(token) == 6 and token.startswith("<0x") and told["model"].get("byte_fallback")
        tokens[i], kinds[i] = token, int(gguf.TokenType.BYTE if whole_byte else gguf.TokenType.NORMAL)
    for token in added:
        kind = gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
        tokens[token["id"]], kinds[token["id"]] = token["content"], int(kind)
    if len(set(tokens)) != size:
        raise ValueError(f"two of its tokens have one text, and llama.cpp tells them by it; {LIKE}")
    return tokens, kinds


def check_known(told: dict[str, Any], fallback: bool, split: str) -> list[str]:
    """What llama.cpp does not do to a text, and few texts need, in words. Raises ValueError for what else it does not
    do, or does without being told."""
    model, found = told["model"], list[Any]()
    for name, inside in (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers")):
        step = told.get(name) or {"type": "Sequence", inside: []}
        found += step[inside] if step["type"] == "Sequence" else [step]
    odd = [step["type"] for step in found if step["type"] not in (SPACES if fallback else BYTES)]
    odd += [key for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout") if model.get(key)]
    odd += ["ignore_merges"] * (bool(model.get("ignore_merges")) != (split == "llama-bpe"))
    odd += [
        f"{flag} of {each['content']!r}" for each in told.get("added_tokens", []) for flag in FLAGS if each.get(flag)
    ]
    if odd:
        more = f" and {len(odd) - 4} more" if len(odd) > 4 else ""
        raise ValueError(f"its tokenizer has {', '.join(odd[:4])}{more}, which llama.cpp has in another way; {LIKE}")
    composed = any(step["type"] == "NFC" for step in found)
    return ["texts are taken as they are, and the student's tokenizer composes their accents (NFC)"] * composed


def scores(told: dict[str, Any], tokens: list[str]) -> list[float]:
    """Of each token, less the rank of the first merge that makes it: SentencePiece merges what scores most."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(told["model"]["merges"]):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        ranks.setdefault(left + right, rank)
    return [-float(ranks.get(token, len(ranks))) for token in tokens]


def add_vocabulary(folder: Path, size: int, writer: gguf.GGUFWriter) -> tuple[str, list[str]]:
    """Tell `writer` of the tokenizer in `folder`, for a table of `size` rows; answers what llama.cpp calls it, and in
    what it differs.

    Raises ValueError for one that it cannot be told of from these files.
    """
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(f"there is no tokenizer.json in {folder}; {LIKE}")
    told = json.loads((folder / "tokenizer.json").read_bytes())
    kind = told["model"].get("type")
    if kind != "BPE":
        raise ValueError(f"its tokenizer is a {kind}, and only BPE is written from its own files; {LIKE}")
    tokens, kinds = pieces(told, size)
    fallback = bool(told["model"].get("byte_fallback"))
    special = gguf.SpecialVocab(folder, load_merges=not fallback, n_vocab=size)
    reader = tokenizer_of(folder)
    if reader is None:
        raise ValueError(f"its tokenizer is not read by transformers; {LIKE}")
    special.add_special_token = ends(reader)
    if fallback:
        name, split = "llama", "default"
        writer.add_token_scores(scores(told, tokens))
        writer.add_add_space_prefix(reader.tokenize("a")[0] != "a")
    else:
        name, split = "gpt2", splitting(told.get("pre_tokenizer"))
    undone = check_known(told, fallback, split)
    writer.add_tokenizer_model(name)
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    special.add_to_gguf(writer, quiet=True)
    return f"{name}, {split}", undone


def ends(reader: PreTrainedTokenizerBase) -> dict[str, bool]:
    """Whether it puts its begin and end tokens around a text."""
    ids = reader("a")["input_ids"]
    return {"bos": ids[0] == reader.bos_token_id, "eos": len(ids) > 1 and ids[-1] == reader.eos_token_id}


def taken_from(file: Path, writer: gguf.GGUFWriter, arch: str, size: int) -> str:
    """The tokenizer of a GGUF of the same model, and what it says of it in general. Raises ValueError for one of
    another kind, or of another number of tokens."""
    fields = gguf.GGUFReader(file).fields
    theirs = fields["general.architecture"].contents() if "general.architecture" in fields else None
    if theirs != arch:
        raise ValueError(f"{file} is of a {theirs}, and this is a {arch}: give a file of the same model")
    tokens = fields.get("tokenizer.ggml.tokens")
    if tokens is None or len(tokens.data) != size:
        raise ValueError(
            f"{file} has {0 if tokens is None else len(tokens.data)} tokens, and this model {size}: give a file of the "
            "same model"
        )
    for name, field in fields.items():
        if name.startswith(("tokenizer.", "general.")) and name not in OURS:
            sub = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], sub)
    return f"as in {file.name}"
