"""Models without attention or without known blocks: their text is written, and refusals say what to do."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

import zsaq
from language_toys import bpe, opt
from teachers import folder_of
from zsaq import Grid, QuantConfig
from zsaq.language.models import Vocabulary
from zsaq.language.sampling import continued
from zsaq.language.writing import write


def mamba() -> MambaForCausalLM:
    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=len(bpe()) + 5, hidden_size=32, state_size=8, num_hidden_layers=2, bos_token_id=1, eos_token_id=1,
        pad_token_id=0,
    )  # fmt: skip
    return MambaForCausalLM(config).eval()


def forgetful(model: Any) -> Any:
    """The model, which hands on no cache."""
    forward = model.forward

    def without(*args: Any, past_key_values: Any = None, use_cache: bool = True, **more: Any) -> Any:
        assert past_key_values is None
        return forward(*args, use_cache=False, **more)

    model.forward = without
    return model


def test_a_model_without_a_cache_writes_what_it_would_with_one() -> None:
    texts = [
        write(model, Vocabulary.of(model, bpe()), 9, (2, 12), rng=torch.Generator().manual_seed(3), batch_size=5)
        for model in (opt(bpe()), forgetful(opt(bpe())))
    ]
    assert torch.equal(texts[0].ids, texts[1].ids) and torch.equal(texts[0].mask, texts[1].mask)
    never, stops = torch.zeros(2, opt(bpe()).config.vocab_size, dtype=torch.bool)
    stops[40:80] = True
    pairs = [
        continued(
            model, [[5, 9], [7], [8, 8, 8], [30]], [3, 9, 2, 6], never=never, stops=stops,
            rng=torch.Generator().manual_seed(1),
        )
        for model in (opt(bpe()), forgetful(opt(bpe())))
    ]  # fmt: skip
    assert [row.ids for row in pairs[0]] == [row.ids for row in pairs[1]]


def test_a_mamba_is_compensated_on_its_own_text(tmp_path: Path) -> None:
    folder_of(tmp_path / "mamba", mamba(), bpe())
    config = QuantConfig(Grid(4, per=16), rules=(("*.dt_proj", None),))
    results = zsaq.quantize_files(tmp_path / "mamba", tmp_path / "out", config, method="gptq", calibration=1)
    assert results.own_text["agreement"] > 0.5 and results.zero_shot
    with pytest.raises(ValueError, match=r"\(\"\*\.mixer\.dt_proj\", None\)") as told:
        zsaq.quantize_files(tmp_path / "mamba", tmp_path / "no", "w4a16", method="gptq", calibration=1)
    assert "rtn" in str(told.value)


@pytest.mark.parametrize("lost", ["blocks", "token_table", "output_layer", "empty"])
def test_what_has_no_known_blocks_is_told_with_a_way_out(
    lost: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_of(tmp_path / "mamba", mamba(), bpe())

    def fail(*_: Any) -> None:
        raise AttributeError("no list of equal blocks")

    monkeypatch.setattr(f"zsaq.stream.skeleton.{lost}", fail)
    with pytest.raises(ValueError, match=r"no list of equal blocks.*in memory, by zsaq\.quantize"):
        zsaq.quantize_files(tmp_path / "mamba", tmp_path / "out", "w4a16", method="rtn")
