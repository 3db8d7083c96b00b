"""The embedded default of `zsaq_bert_w2a8.py`: a task, a teacher and a generator made on the spot, no download.

The task is to tell from one sentence which of 21 parts of Python it documents (`embedded_corpus.py`). The teacher, a
small BERT, learns it from docstrings. The generator, a small OPT with the teacher's tokens, learns English from
comments and never sees a sentence of the task. Both are trained once, in about two minutes on two cores, and cached.
"""

import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import tokenizers
import torch
import transformers
from transformers import AutoTokenizer, BertForSequenceClassification, OPTForCausalLM, PreTrainedTokenizerFast

from examples import embedded_corpus, embedded_training
from examples.cache import made_once
from examples.embedded_training import Log, train_generator, train_teacher, train_tokenizer
from zsaq.train.logging import say


@dataclass
class Embedded:
    """`test`: rows {"sentence": str, "label": index into `names`}. Models are in eval mode, on the CPU.

    `unlabeled`: the sentences that the teacher was trained on, for upper bounds alone, which are not zero-shot.
    """

    teacher: BertForSequenceClassification
    tokenizer: PreTrainedTokenizerFast
    generator: OPTForCausalLM
    test: list[dict]
    unlabeled: list[str]
    names: list[str]


def prepare(cache: Path | None = None, log: Log = say) -> Embedded:
    """The embedded default, from the cache or trained now; `log` takes the progress, a line at a time.

    `cache`: the folder of all such defaults (`examples.cache`). Whatever changes the
    result (these sources, Python, the libraries) changes the name of the folder in it. Raises ValueError if this
    Python's standard library has no sources, and for a cache that cannot be written.
    """
    folder = made_once(cache, f"embedded-{fingerprint()}", lambda folder: make(folder, log))
    log(f"the embedded teacher and generator are in {folder}")
    data = json.loads((folder / "data.json").read_text(encoding="utf-8"))
    return Embedded(
        BertForSequenceClassification.from_pretrained(folder / "teacher").eval(),
        AutoTokenizer.from_pretrained(folder / "teacher"),
        OPTForCausalLM.from_pretrained(folder / "generator").eval(),
        **data,
    )


def fingerprint() -> str:
    sources = [Path(file).read_bytes() for file in (__file__, embedded_corpus.__file__, embedded_training.__file__)]
    versions = [sys.version, torch.__version__, transformers.__version__, tokenizers.__version__]
    return hashlib.sha256(b"\0".join([*sources, *(version.encode() for version in versions)])).hexdigest()[:12]


def make(folder: Path, log: Log) -> None:
    """Train everything and write it into `folder`. The caller's random state is left as it was."""
    log("the embedded default is trained once, on the prose of this Python's standard library; about two minutes")
    corpus = embedded_corpus.read_corpus()
    train = [row["sentence"] for row in corpus.train]
    tokenizer = train_tokenizer(train)
    log(f"{len(train)} sentences to train on, {len(corpus.test)} to test; {len(corpus.comments)} for the generator")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in another order end in another teacher; so small a model gains nothing from more
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        teacher = train_teacher(tokenizer, corpus, embedded_training.TEACHER, log)
        generator = train_generator(tokenizer, corpus, embedded_training.GENERATOR, log)
    torch.set_num_threads(threads)
    for name, model in (("teacher", teacher), ("generator", generator)):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    data = {"test": corpus.test, "unlabeled": train, "names": corpus.names}
    (folder / "data.json").write_text(json.dumps(data), encoding="utf-8")
