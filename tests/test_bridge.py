import pytest
import torch
from torch import Tensor

from language_toys import bert, bpe, opt, wordpiece
from zsaq.language.bridge import RepresentationAdapter, SameVocabulary, VocabularyBridge, bridge_for
from zsaq.language.models import Vocabulary, token_table
from zsaq.language.soft_text import SoftText, soft
from zsaq.language.text import Text, encode
from zsaq.language.writing import write


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def written(tokenizer, top: int = 6) -> tuple[Vocabulary, SoftText]:
    model = opt(tokenizer, embed=16)
    vocabulary = Vocabulary.of(model, tokenizer)
    return vocabulary, soft(model, write(model, vocabulary, 8, (3, 9), rng=rng()), vocabulary, top=top)


def test_the_value_is_the_token_and_the_gradient_is_the_mixture() -> None:
    """Both against y @ E with y = onehot(s) + p - stopgrad(p), written out over the vocabulary."""
    tokenizer = wordpiece()
    table = token_table(bert(tokenizer)).weight.detach()
    text = Text.of([[10, 11, 12], [13, 14]])
    ids = torch.stack([text.ids, (text.ids + 5) % len(table), (text.ids + 9) % len(table)], -1)
    log_probs = torch.randn(2, 3, 3).log_softmax(-1).requires_grad_()
    out = SameVocabulary(table).embed(SoftText(text, ids, log_probs, torch.zeros(2, 3, 4)))
    assert torch.equal(out, table[text.ids])
    target = torch.randn_like(out)
    (mine,) = torch.autograd.grad((out * target).sum(), log_probs)
    p = torch.zeros(2, 3, len(table)).scatter_add(-1, ids, log_probs.exp())
    hard = torch.nn.functional.one_hot(text.ids, len(table)).float()
    y = hard + p - p.detach()
    (expected,) = torch.autograd.grad(((y @ table) * target).sum(), log_probs, retain_graph=True)
    torch.testing.assert_close(mine, expected)
    (softly,) = torch.autograd.grad(((p @ table) * target).sum(), log_probs)
    torch.testing.assert_close(mine, softly)


def test_the_gradient_reaches_the_whole_generator() -> None:
    tokenizer = wordpiece()
    model, teacher = opt(tokenizer, embed=16), bert(tokenizer)
    vocabulary = Vocabulary.of(model, tokenizer)
    text = write(model, vocabulary, 8, (3, 9), rng=rng())
    for kind in ("same", "vocabulary", "representation"):
        bridge = bridge_for(tokenizer, tokenizer, teacher, kind)
        out = soft(model, text, vocabulary, top=6)
        bridge.fit(out)
        grads = torch.autograd.grad(bridge.embed(out).square().sum(), list(model.parameters()), allow_unused=True)
        assert all(g is not None and g.abs().sum() > 0 for g in grads), kind
        assert not list(bridge.parameters()) and all(p.grad is None for p in teacher.parameters())


def test_auto_takes_the_same_vocabulary_where_there_is_one() -> None:
    teacher = bert(wordpiece())
    assert isinstance(bridge_for(wordpiece(), wordpiece(), teacher), SameVocabulary)
    assert isinstance(bridge_for(bpe(), wordpiece(), teacher), VocabularyBridge)
    assert isinstance(bridge_for(wordpiece(), wordpiece(), teacher, "vocabulary"), VocabularyBridge)
    with pytest.raises(ValueError, match="vocabularies differ"):
        bridge_for(bpe(), wordpiece(), teacher, "same")
    with pytest.raises(ValueError, match="choose auto"):
        bridge_for(bpe(), wordpiece(), teacher, "linear")  # type: ignore[arg-type]


def matrix(bridge: VocabularyBridge, columns: int) -> Tensor:
    """Reference: M written out, [V_G, V]."""
    ends = [*bridge.offsets[1:].tolist(), len(bridge.pieces)]
    m = torch.zeros(len(bridge.offsets), columns)
    for i, (start, end) in enumerate(zip(bridge.offsets.tolist(), ends, strict=True)):
        for piece in bridge.pieces[start:end].tolist():
            m[i, piece] += 1 / (end - start)
    return m


def test_the_sparse_bridge_from_bpe_to_wordpiece() -> None:
    generator, tokenizer = bpe(), wordpiece()
    table = token_table(bert(tokenizer)).weight.detach()
    bridge = VocabularyBridge(generator, tokenizer, table)
    m = matrix(bridge, len(tokenizer))
    torch.testing.assert_close(bridge.table, m @ table)
    assert not bridge.exact
    for name, pieces in (
        ("Ġfilm", ["film"]),  # the leading space goes
        ("film", ["film"]) if "film" in generator.get_vocab() else ("Ġgood", ["good"]),
        ("F", ["f"]),  # lower-cased by the teacher's tokenizer
        ("</s>", ["[UNK]"]),
        ("Ċ", ["[UNK]"]),  # nothing but a blank
        ("é".encode().decode("latin1")[0], ["[UNK]"]),  # half a character
    ):
        row = m[generator.convert_tokens_to_ids(name)]
        assert tokenizer.convert_ids_to_tokens(row.nonzero()[:, 0].tolist()) == pieces, name
    spelled_out = [i for i in range(len(m)) if (m[i] > 0).sum() > 1]
    assert spelled_out, "some token takes several pieces"
    torch.testing.assert_close(m.sum(1), torch.ones(len(m)))


def test_the_text_bridge_tokenises_again() -> None:
    generator, tokenizer = bpe(), wordpiece()
    bridge = VocabularyBridge(generator, tokenizer, token_table(bert(tokenizer)).weight)
    strings = ["the film was badly played", "good"]
    expected = [*tokenizer(strings, add_special_tokens=False)["input_ids"], [2]]
    assert bridge.ids(encode(generator, [*strings, " "])).lists() == expected


def test_wordpiece_to_bpe_keeps_spaces_and_word_ends() -> None:
    generator, tokenizer = wordpiece(), bpe()
    bridge = VocabularyBridge(generator, tokenizer, torch.randn(len(tokenizer), 4))
    m = matrix(bridge, len(tokenizer))
    assert m[generator.convert_tokens_to_ids("film"), tokenizer.convert_tokens_to_ids("Ġfilm")] == 1
    assert m[generator.convert_tokens_to_ids("##x"), tokenizer.convert_tokens_to_ids("x")] == 1


def test_the_same_pieces_under_other_ids_are_an_exact_map() -> None:
    generator, tokenizer = bpe(), bpe(turn=7)
    table = torch.randn(len(tokenizer), 4)
    bridge = VocabularyBridge(generator, tokenizer, table)
    assert bridge.exact
    strings = ["the film was badly played", "Ünfit \n good"]
    mapped = bridge.ids(encode(generator, strings))
    assert mapped.lists() == tokenizer(strings, add_special_tokens=False)["input_ids"]
    assert mapped.lists() != encode(generator, strings).lists()
    text = encode(generator, strings)
    assert torch.equal(bridge.table[text.ids[text.mask]], table[mapped.ids[mapped.mask]])


def test_a_vocabulary_that_means_nothing_is_refused() -> None:
    tokenizer = wordpiece()
    core = tokenizer.backend_tokenizer
    from tokenizers import models

    specials = {t: i for i, t in enumerate(["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "nothing"])}
    core.model = models.WordPiece(specials, unk_token="[UNK]")
    with pytest.raises(ValueError, match="are nothing in the teacher's vocabulary"):
        VocabularyBridge(bpe(), tokenizer, torch.randn(7, 4))


@pytest.mark.parametrize("source", [wordpiece, bpe])
def test_the_adapter_solves_the_ridge_and_is_straight_by_default(source) -> None:
    tokenizer, generator = wordpiece(), source()
    inner = bridge_for(generator, tokenizer, bert(tokenizer))
    adapter = RepresentationAdapter(inner)
    _, out = written(generator)
    with pytest.raises(ValueError, match="call fit"):
        adapter.embed(out)
    adapter.fit(out)
    assert torch.equal(adapter.embed(out), inner.embed(out))
    assert torch.equal(adapter.ids(out.text).ids, inner.ids(out.text).ids)
    bent = RepresentationAdapter(inner, ridge=1e-9, straight=False)
    bent.fit(out)
    h, x = out.hidden[out.text.mask].double(), inner.table[out.text.ids[out.text.mask]].double()
    design = torch.cat([h, torch.ones(len(h), 1, dtype=torch.float64)], 1)
    expected = design @ torch.linalg.lstsq(design, x).solution
    torch.testing.assert_close(bent.embed(out)[out.text.mask].double(), expected, rtol=1e-3, atol=1e-3)
    # More ridge, smaller weights, the same mean.
    stiff = RepresentationAdapter(inner, ridge=1e6, straight=False)
    stiff.fit(out)
    torch.testing.assert_close(stiff.embed(out)[out.text.mask], x.mean(0).float().expand(len(x), -1), rtol=0, atol=1e-3)
    assert bridge_for(generator, tokenizer, bert(tokenizer), "representation").straight
