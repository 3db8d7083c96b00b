"""What a generator is asked for: a person's prompts, or automatic ones of all that is known about the teacher."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from zsaq.foreign import UNMADE
from zsaq.language.choosing import Foreign, chosen_kinds
from zsaq.language.kinds import KINDS
from zsaq.language.layout import Layout
from zsaq.language.prompted import PromptedWriter
from zsaq.language.prompts import Known, Prompts, automatic, named_kinds
from zsaq.language.writing import load_generator


@final
@dataclass(frozen=True)
class Asking:
    """`prompts`: a person's, which win; `known`: words about the teacher; `words`: those that its weights remember, the
    surest first; `foreign`: the share of texts' words that it was not fine-tuned on (`zsaq.language.fingerprint`)."""

    prompts: Prompts | None = None
    known: Known = field(default_factory=lambda: Known((), frozenset()))
    words: Sequence[str] = ()
    foreign: Foreign | None = None

    def of(
        self, writer: PromptedWriter, teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None,
        layout: Layout | None, text_pair: bool,
    ) -> Prompts:  # fmt: skip
        """The prompts. Where neither a person nor the teacher's name, labels or card say what kind of text it reads,
        `writer` writes some of every kind and the teacher's answers choose (`chosen_kinds`); `layout` None: a teacher
        whose answers tell nothing, for which all kinds are written."""
        if self.prompts is not None:
            return self.prompts
        if kinds := named_kinds(self.known):
            why = f"kinds of text that its name, labels or card point at: {', '.join(kinds)}"
        elif layout is not None and tokenizer is not None:
            kinds = chosen_kinds(writer, teacher, tokenizer, layout, self.foreign)
            why = f"kinds of text on which its answers differ most: {', '.join(kinds)}"
        else:
            kinds, why = list(KINDS), "all kinds of text"
        return automatic(self.known, kinds, why, self.words, text_pair)


def has_template(generator: str | tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> bool:
    """Whether it has a chat template: it then follows prompts. Raises ValueError for one that cannot be loaded."""
    if not isinstance(generator, str):
        return bool(generator[1].chat_template)
    try:
        return bool(AutoTokenizer.from_pretrained(generator, trust_remote_code=False).chat_template)
    except (OSError, ValueError, *UNMADE):
        return bool(load_generator(generator)[1].chat_template)  # which says what is wrong
