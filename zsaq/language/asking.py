"""What a generator is asked for: a person's prompts, or automatic ones of all that is known about the teacher."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, final

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from zsaq.foreign import UNMADE
from zsaq.language.choosing import chosen_kinds
from zsaq.language.fingerprint import Fingerprint
from zsaq.language.kinds import KINDS
from zsaq.language.models import known_task_kind
from zsaq.language.prompted import PromptedWriter
from zsaq.language.prompts import WORDS, Known, Prompts, automatic, named_kinds
from zsaq.language.writing import load_generator
from zsaq.train.logging import say

TELLING: Final = 5  # letters: shorter words are mostly of, with, were


@final
@dataclass(frozen=True)
class Asking:
    """`prompts`: a person's, which win; `known`: words about the teacher; `fingerprint()`: what its weights remember
    beside its base, which is not read before it is asked for; None where no base is known."""

    prompts: Prompts | None = None
    known: Known = field(default_factory=Known)
    fingerprint: Callable[[], Fingerprint | None] = lambda: None

    def of(
        self, writer: PromptedWriter, teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text_pair: bool
    ) -> Prompts:
        """The prompts. Where neither a person nor the teacher's name, labels or card say what kind of text it reads,
        `writer` writes some of every kind, and the teacher's answers and weights choose (`chosen_kinds`); for a teacher
        that answers no class or number all kinds are written. Half of the prompts are about words that the weights
        remember, if they do."""
        if self.prompts is not None:
            return self.prompts
        memory = self.fingerprint()
        if memory is not None and memory.silence is not None:
            say(f"the weights tell nothing of the teacher's texts: {memory.silence}")
        if memory is not None and memory.pairs and not text_pair:
            say("the weights remember pairs of texts: give text_pair=True (--text_pair) if the teacher reads two")
        if kinds := named_kinds(self.known):
            why = f"kinds of text that its name, labels or card point at: {', '.join(kinds)}"
        elif known_task_kind(teacher) in ("classification", "regression"):
            kinds = chosen_kinds(writer, teacher, tokenizer, text_pair, memory)
            why = f"kinds of text on which its answers differ most: {', '.join(kinds)}"
        else:
            kinds, why = list(KINDS), "all kinds of text"
        words = [] if memory is None else memory.words(tokenizer, 3 * WORDS)
        words = ([word for word in words if len(word) >= TELLING] or words)[:WORDS]
        return automatic(self.known, kinds, why, words, text_pair)


def has_template(generator: str | tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> bool:
    """Whether it has a chat template: it then follows prompts. Raises ValueError for one that cannot be loaded."""
    if not isinstance(generator, str):
        return bool(generator[1].chat_template)
    try:
        return bool(AutoTokenizer.from_pretrained(generator, trust_remote_code=False).chat_template)
    except (OSError, ValueError, *UNMADE):
        return bool(load_generator(generator)[1].chat_template)  # which says what is wrong
