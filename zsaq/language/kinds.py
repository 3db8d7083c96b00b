"""What kinds of text there are, and by which words of a name or card a kind is known."""

import re
from collections.abc import Iterable
from itertools import pairwise
from typing import Final

KINDS: Final[dict[str, str]] = {  # signs are of names and cards, not of labels: a topic called business is no report
    "film review": "sst sst2 imdb movie movies film films rotten tomatoes cinema",
    "customer's review of a product": "amazon product products review reviews ecommerce",
    "review of a restaurant": "yelp restaurant restaurants hotel hotels",
    "news item": "ag agnews news headline headlines bbc reuters newsgroups",
    "question that somebody asks": "trec question questions squad qqp quora",
    "tweet": "tweet tweets twitter tweeteval irony emoji",
    "comment in an internet forum": "toxic toxicity jigsaw civil comment comments reddit forum hate offensive",
    "customer's message to a bank": "banking banking77",
    "request to a voice assistant": "clinc clinc150 intent intents massive snips atis",
    "e-mail": "spam enron email emails phishing",
    "article of an encyclopedia": "wikipedia wiki dbpedia encyclopedia",
    "scientific abstract": "pubmed scientific scicite scibert abstracts",
    "note on a patient": "medical clinical biomedical mimic patient patients",
    "contract": "legal ledgar contract contracts",
    "report on a company's business": "finance financial finbert phrasebank",
    "everyday conversation": "dialog dialogue dailydialog goemotions emotion emotions",
    "novel": "fiction novel novels gutenberg",
    "caption of a photograph": "flickr flickr30k coco caption captions snli stsb sts",
    "manual of a program": "stackoverflow documentation docs manual",
    "message to a friend": "sms",
}
OPENINGS: Final = ("One sentence from {}:", "From {}:", "Somebody wrote in {}:", "{}, in one sentence:")
NAMELESS: Final = re.compile(r"(label|class|cls|category)?[\s_-]*\d+", re.IGNORECASE)
FEELINGS: Final = {
    "pos": "positive", "neg": "negative", "neu": "neutral", "good": "positive", "bad": "negative",
    **{word: word for word in ("positive", "negative", "neutral", "very positive", "very negative", "mixed")},
    **{word: word for word in ("toxic", "offensive", "hateful", "friendly", "sarcastic", "ironic", "neutral")},
    **{word: word for word in ("subjective", "objective", "formal", "informal", "angry", "sad", "happy", "urgent")},
    "hate": "hateful", "hate speech": "hateful", "non toxic": "friendly", "not toxic": "friendly",
    "non offensive": "friendly", "not offensive": "friendly", "no hate": "friendly", "non hate": "friendly",
    "joy": "joyful", "sadness": "sad", "anger": "angry", "fear": "frightened", "love": "loving",
    "surprise": "surprised", "non irony": "serious", "irony": "ironic", "spam": "dishonest", "ham": "honest",
    "toxicity": "toxic",
    **{f"{stars} star{'s' * (stars != 1)}": f"{stars}-star" for stars in range(1, 6)},
}  # fmt: skip
RELATIONS: Final[dict[str, str]] = {  # of a pair: what is asked for behind the first text
    "paraphrase": 'Somebody said: "{first}" The same in other words:',
    "entailment": 'It is true that "{first}" So it is also true, and follows from it, that:',
    "neutral": 'Somebody said: "{first}" A sentence on the same subject, which may be true or not:',
    "contradiction": 'Somebody said: "{first}" That is wrong. On the contrary:',
    "question": 'A text says: "{first}" A question that it answers:',
    "answer": 'Question: "{first}" Answer:',
}
SIGNS: Final[dict[str, tuple[str, ...]]] = {  # words of labels, names and cards -> the relations that such pairs have
    "entailment contradiction mnli snli nli xnli rte qnli": ("entailment", "neutral", "contradiction"),
    "paraphrase equivalent duplicate mrpc qqp paws": ("paraphrase", "neutral"),
    "sts stsb similarity": ("paraphrase", "entailment", "neutral"),
    "rerank reranker ranker marco retrieval relevance relevant squad boolq answer": ("answer", "neutral"),
}


def words_of(texts: Iterable[str]) -> set[str]:
    """The words and numbers of names, in lower case: {"bert", "sst", "2", "sst2"} of "BERT-SST-2"."""
    found: set[str] = set()
    for text in texts:
        parts = re.findall(r"[a-z0-9]+", text.lower())
        found |= {*parts, *(a + b for a, b in pairwise(parts) if b.isdigit())}
    return found


def kinds_named(words: set[str]) -> list[str]:
    """The kinds of text that these words point at."""
    return [kind for kind, signs in KINDS.items() if words & set(signs.split())]


def relations_named(words: set[str]) -> tuple[str, ...]:
    """The relations of pairs that these words point at; () for none."""
    return next((relations for signs, relations in SIGNS.items() if words & set(signs.split())), ())


def spoken(label: str) -> str | None:
    """A label's name as people say it; None for one that says nothing: LABEL_0, an abbreviation, a number."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", label)
    words = " ".join(re.sub(r"[_\-\s]+", " ", "".join(c for c in words if c.isprintable())).split())[:60]
    if words.lower() in FEELINGS:
        return words.lower()
    nothing = NAMELESS.fullmatch(words) or not any(map(str.isalpha, words)) or (words.isupper() and len(words) < 6)
    return None if nothing or len(words) < 2 else words


def article(noun: str) -> str:
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


def openings(kind: str, label: str | None = None) -> list[str]:
    """Prompts for a kind of text, if a `label` is given for a text that would have it."""
    if label is not None and (feeling := FEELINGS.get(label)):
        what = article(f"{feeling} {kind}")
    else:
        what = article(kind) + (f" about {label}" if label else "")
    return [line[:1].upper() + line[1:] for line in (opening.format(what) for opening in OPENINGS)]
