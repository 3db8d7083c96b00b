import builtins

import pytest
import torch
from torch import Tensor

from language_toys import bpe, opt, wordpiece
from zsaq.language.ascent import ascent_optimizer
from zsaq.language.models import Vocabulary
from zsaq.language.soft_text import soft
from zsaq.language.text import Partner, Text, encode, text_pairs
from zsaq.language.writing import draw, load_generator, with_adapters, write


@pytest.fixture(params=["wordpiece", "bpe"])
def author(request):
    tokenizer = {"wordpiece": wordpiece, "bpe": bpe}[request.param]()
    model = opt(tokenizer)
    return model, Vocabulary.of(model, tokenizer)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def logits_before(model, vocabulary: Vocabulary, text: Text) -> Tensor:
    """Reference: what the whole model says before each position, over what may be written there."""
    before = torch.cat([torch.full((len(text), 1), vocabulary.bos), text.ids[:, :-1]], 1)
    return model(input_ids=before).logits.masked_fill(~vocabulary.content, -torch.inf)


def test_texts_hold_content_only_and_are_never_empty(author) -> None:
    model, vocabulary = author
    for style in ({}, {"uniform_start": False, "greedy": (0, 0)}):
        text = write(model, vocabulary, 300, (2, 12), rng=rng(), batch_size=128, **style)
        lengths = text.mask.sum(1)
        assert len(text) == 300 and lengths.min() >= 1 and lengths.max() <= 12
        assert vocabulary.content[text.ids[text.mask]].all()
        assert (text.ids[~text.mask] == vocabulary.pad).all()
        assert (text.mask.sort(1, descending=True).values == text.mask).all()


def test_the_same_seed_writes_the_same_text(author) -> None:
    model, vocabulary = author
    one, same, other = (write(model, vocabulary, 20, 10, rng=rng(seed)) for seed in (0, 0, 1))
    assert torch.equal(one.ids, same.ids) and torch.equal(one.mask, same.mask)
    assert not (one.ids.shape == other.ids.shape and torch.equal(one.ids, other.ids))


def test_greedy_first_then_sampled(author) -> None:
    model, vocabulary = author
    text = write(model, vocabulary, 200, 12, rng=rng(), greedy=(4, 4))
    best = logits_before(model, vocabulary, text).argmax(-1)
    hit = (best == text.ids)[:, 1:] | ~text.mask[:, 1:]
    assert hit[:, :4].all(), "greedy where only content was the likeliest"
    assert not hit[:, 4:].all()
    starts = text.ids[:, 0].unique()
    assert len(starts) > 0.5 * min(200, len(vocabulary.printable))


def test_samples_follow_the_models_distribution() -> None:
    tokenizer = wordpiece()
    model = opt(tokenizer, scale=0.15)
    vocabulary = Vocabulary.of(model, tokenizer)
    text = write(model, vocabulary, 20_000, 1, rng=rng(), greedy=(0, 0), uniform_start=False, batch_size=20_000)
    expected = logits_before(model, vocabulary, text.rows(torch.tensor([0])))[0, 0].detach().softmax(-1)
    seen = torch.bincount(text.ids[:, 0], minlength=len(expected)) / 20_000
    assert (seen - expected).abs().max() < 4 * float(expected.max() / 20_000) ** 0.5


def test_draws_hit_every_token_by_its_share_and_no_other() -> None:
    logits = torch.randn(700).masked_fill(torch.rand(700) < 0.5, -torch.inf)
    logits[256:512] = -torch.inf  # a whole run of nothing
    chance = torch.rand(2, 60_000, 1, generator=rng(), dtype=torch.float64)
    seen = torch.bincount(draw(logits.expand(60_000, -1), chance)[:, 0], minlength=700) / 60_000
    expected = logits.softmax(-1)
    assert (seen[expected == 0] == 0).all()
    assert ((seen - expected).abs() <= 5 * (expected / 60_000).sqrt() + 1e-9).all()
    for edge in (0.0, 1 - 2**-53):
        hit = draw(logits[None], torch.full((2, 1, 1), edge, dtype=torch.float64))
        assert expected[int(hit)] > 0


def test_the_cache_that_drops_finished_rows_changes_nothing() -> None:
    tokenizer = wordpiece()
    model = opt(tokenizer)
    model.config.eos_token_id = []  # texts end by their length alone
    vocabulary = Vocabulary.of(model, tokenizer)
    text = write(model, vocabulary, 64, (1, 16), rng=rng(), greedy=(20, 20))
    assert text.mask.sum(1).min() < 4 and text.mask.sum(1).max() > 12
    best = logits_before(model, vocabulary, text).argmax(-1)
    assert (best == text.ids)[:, 1:][text.mask[:, 1:]].all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "length is 0"),
        ({"length": (5, 4)}, "lower end first"),
        ({"length": 32}, r"1\.\.31"),
        ({"temperature": 0.0}, "temperature is 0"),
        ({"batch_size": 1.5}, "batch_size 1.5"),
        ({"greedy": (3, 2)}, "greedy"),
        ({"uniform_start": False}, "all texts alike"),
    ],
)
def test_numbers_that_cannot_be(options: dict, message: str) -> None:
    tokenizer = wordpiece()
    model = opt(tokenizer)
    with pytest.raises(ValueError, match=message):
        write(model, Vocabulary.of(model, tokenizer), 2, options.pop("length", 8), rng=rng(), **options)


def test_the_whole_support_is_the_softmax(author) -> None:
    model, vocabulary = author
    text = write(model, vocabulary, 6, (3, 9), rng=rng())
    out = soft(model, text, vocabulary, top=len(vocabulary.content), temperature=1.5)
    dense = torch.zeros(*text.ids.shape, len(vocabulary.content)).scatter_add(-1, out.ids, out.log_probs.exp())
    expected = (logits_before(model, vocabulary, text) / 1.5).softmax(-1)
    torch.testing.assert_close(dense[text.mask], expected[text.mask], rtol=1e-4, atol=1e-6)
    assert (out.log_probs.exp()[~text.mask] == 0).all()


@pytest.mark.parametrize("top", [1, 8])
def test_a_small_support_is_renormalised(author, top: int) -> None:
    model, vocabulary = author
    text = write(model, vocabulary, 6, (3, 9), rng=rng())
    out = soft(model, text, vocabulary, top=top)
    assert torch.equal(out.ids[..., 0], text.ids)
    assert vocabulary.content[out.ids[text.mask]].all()
    full = logits_before(model, vocabulary, text).softmax(-1)
    for i, j in text.mask.nonzero().tolist():
        support = sorted({int(text.ids[i, j]), *full[i, j].topk(top).indices.tolist()})
        share = full[i, j][support] / full[i, j][support].sum()
        mine = torch.zeros_like(full[i, j]).index_add(0, out.ids[i, j], out.log_probs[i, j].exp())[support]
        torch.testing.assert_close(mine, share, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("top", [2, 40])
def test_chunks_and_checkpoints_change_nothing(author, top: int) -> None:
    """With 2 the head's rows are gathered, with 40 its logits are computed: both ways of `_log_probs`."""
    model, vocabulary = author
    text = write(model, vocabulary, 6, (3, 9), rng=rng())
    outputs = []
    for chunk in (4, 1000):
        out = soft(model, text, vocabulary, top=top, chunk=chunk)
        model.zero_grad()
        (out.log_probs[..., 0] * text.mask).sum().backward()
        outputs.append((out, [p.grad.clone() for p in model.parameters()]))
    (one, grads), (other, others) = outputs
    assert torch.equal(one.ids, other.ids)
    torch.testing.assert_close(one.log_probs, other.log_probs)
    torch.testing.assert_close(grads, others, rtol=1e-4, atol=1e-5)
    expected = logits_before(model, vocabulary, text).log_softmax(-1).gather(-1, one.ids)
    again = torch.nn.functional.pad(one.ids[..., 1:] == one.ids[..., :1], (1, 0))
    expected = expected.masked_fill(again, -torch.inf).log_softmax(-1)
    torch.testing.assert_close(one.log_probs[..., 0][text.mask], expected[..., 0][text.mask], rtol=1e-4, atol=1e-5)


def test_another_models_support_is_kept() -> None:
    tokenizer = wordpiece()
    model, other = opt(tokenizer), opt(tokenizer, scale=0.1)
    vocabulary = Vocabulary.of(model, tokenizer)
    text = write(model, vocabulary, 4, 6, rng=rng())
    mine = soft(model, text, vocabulary, top=5)
    theirs = soft(other, text, vocabulary, support=mine.ids)
    assert torch.equal(theirs.ids, mine.ids)
    assert not torch.allclose(theirs.log_probs, mine.log_probs)
    torch.testing.assert_close(theirs.log_probs.exp().sum(-1)[text.mask], torch.ones(int(text.mask.sum())))


def test_a_generator_from_a_folder_with_and_without_adapters(tmp_path) -> None:
    tokenizer = wordpiece()
    opt(tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, loaded = load_generator(str(tmp_path))
    assert not model.training and loaded.get_vocab() == tokenizer.get_vocab()
    assert all(p.requires_grad for p in model.parameters())
    assert isinstance(ascent_optimizer(model, 1e-3), torch.optim.AdamW)
    with pytest.raises(ValueError, match="frozen"):
        ascent_optimizer(model.requires_grad_(False), 1e-3)
    pytest.importorskip("peft")
    model = with_adapters(load_generator(str(tmp_path))[0])
    assert {n.split(".")[-3] for n, p in model.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}


@pytest.mark.parametrize("missing", ["peft", "bitsandbytes"])
def test_a_missing_extra_is_named(monkeypatch, missing: str) -> None:
    model = opt(wordpiece())
    real = builtins.__import__

    def blocked(name, *args, **kwargs):
        if name.split(".")[0] == missing:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", blocked)
    with pytest.raises(ValueError, match=r"zsaq\[(lora|bnb)\]"):
        if missing == "peft":
            with_adapters(model)
        else:
            ascent_optimizer(model, 1e-3, eight_bit=True)


def test_texts_are_cut_joined_and_paired() -> None:
    text = Text.of([[5, 6, 7, 8], [9], [4, 5]])
    assert text.rows(torch.tensor([1, 2])).ids.tolist() == [[9, 0], [4, 5]]
    assert Text.cat([text.rows(torch.tensor([1])), text]).lists() == [[9], [5, 6, 7, 8], [9], [4, 5]]
    long = Text.of([[10 * i + j for j in range(1, 9)][: 1 + i % 8] for i in range(1, 201)])
    first, second = text_pairs(long, rng())
    copies = 0
    for a, b in zip(first.lists(), second.lists(), strict=True):
        assert b
        mine = set(b) <= set(a)
        copies += mine
        assert b == sorted(b) and (mine or len({i // 10 for i in b}) <= 2)
    assert 70 < copies < 130
    partner = Partner.of(long.mask, rng())
    assert torch.equal(partner.take(long.ids), second.ids)
    kept = sum(len(b) for a, b in zip(first.lists(), second.lists(), strict=True) if set(b) <= set(a))
    whole = sum(len(a) for a, b in zip(first.lists(), second.lists(), strict=True) if set(b) <= set(a))
    assert 0.8 < kept / whole < 0.9
    empty = encode(wordpiece(), ["", "good film"])
    assert empty.lists()[0] == [2] and len(empty.lists()[1]) == 2
