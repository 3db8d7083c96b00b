"""Cards: what is known is told, in the Hub's formats; what is not known is not there; real data is never hidden."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from huggingface_hub.repocard_data import model_index_to_eval_results

from toys import bert, gpt2
from zsaq import Card, QuantConfig, quantize_model
from zsaq.io.checksums import fingerprint
from zsaq.report.card import MetricScore, base_of
from zsaq.report.card_text import NO_DATA, WITH_DATA, eval_files, readme
from zsaq.report.table import markdown
from zsaq.run import Base, Data, Results, Row

W2 = QuantConfig.parse("w2a8")
BASE = Base("someone/tiny", {"license": "mit"}, "someone/tiny", "a" * 40)
DATA = Data("GLUE sst2", "nyu-mll/glue", "sst2", "validation")
SCORES = (
    MetricScore("teacher", "accuracy", (0.92, 0.92, 0.92)),
    MetricScore("zsaq", "accuracy", (0.88, 0.90, 0.89)),
    MetricScore("zsaq", "agreement", (0.9, 0.9, 0.9)),
)
CARD = Card(BASE, "zsaq", True, (2, 0, 1), DATA, SCORES, {"steps": 200}, "recipes/one.py", "b" * 64, 400_000, "en")
RESULTS = Results(
    "someone/tiny", "zsaq", W2, 0, True, "texts of the teacher's own", budget={"steps": 200}, data=DATA, base=BASE,
    rows=(
        Row("teacher", 1000, 0.0, {"accuracy": 0.9, "agreement": 1.0}),
        Row("zsaq", 100, 9.0, {"accuracy": 0.8, "agreement": 0.85}),
    ),
    recipe="recipes/one.py", recipe_sha256="b" * 64, versions={"zsaq": "0.1.0"}, knowledge=("the names of the labels",),
)  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder, student = tmp_path_factory.mktemp("saved"), quantize_model(bert(), W2)
    student.save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "pictures").mkdir()
    for name in ("curves.png", "pictures/images.png"):
        (folder / name).write_bytes(b"\x89PNG")
    return folder, student


def written(card: Card, saved: tuple[Path, Any]) -> ModelCard:
    return ModelCard(readme(card, "me/tiny-w2a8", *saved))


def test_the_metadata_says_what_the_hub_reads(saved: tuple[Path, Any]) -> None:
    metadata = written(CARD, saved).data.to_dict()
    assert metadata["base_model"] == "someone/tiny" and metadata["base_model_relation"] == "quantized"
    assert metadata["library_name"] == "zsaq" and metadata["pipeline_tag"] == "text-classification"
    assert (
        metadata["license"] == "mit"
        and metadata["language"] == "en"
        and metadata["metrics"] == ["accuracy", "agreement"]
    )
    assert {"zsaq", "2-bit", "data-free"} <= set(metadata["tags"]) and "transformers" not in metadata["tags"]
    facts = metadata["zsaq"]
    assert facts["zero_shot"] is True and facts["real_data"] == "none" and facts["seeds"] == [2, 0, 1]
    assert QuantConfig.from_dict(facts["quantization"]) == W2 and facts["base_revision"] == "a" * 40


def test_the_model_index_holds_the_students_mean_and_spread(saved: tuple[Path, Any]) -> None:
    name, results = model_index_to_eval_results(written(CARD, saved).data.to_dict()["model-index"])
    assert name == "tiny-w2a8" and [result.metric_type for result in results] == ["accuracy", "agreement"]
    first = results[0]
    assert first.metric_value == pytest.approx(0.89) and first.metric_args is not None
    assert first.metric_args["std"] == pytest.approx(0.01) and first.metric_args["seeds"] == [2, 0, 1]
    assert (first.dataset_type, first.dataset_config, first.dataset_split) == ("nyu-mll/glue", "sst2", "validation")


def test_the_text_shows_how_to_load_what_was_measured_and_what_was_done(saved: tuple[Path, Any]) -> None:
    text = written(CARD, saved).text
    assert NO_DATA in text and WITH_DATA not in text
    code = text.split("```python\n")[1].split("```")[0]
    compile(code, "snippet", "exec")
    assert code.index("import zsaq") < code.index('zsaq.load("me/tiny-w2a8")') and "AutoTokenizer" in code
    assert "AutoImageProcessor" not in code
    assert (
        "| zsaq (this model) | 0.8900 ± 0.0100 | 0.9000 ± 0.0000 |" in text
        and "| teacher | 0.9200 ± 0.0000 | - |" in text
    )
    assert "the weights are those of seed 2" in text
    size = (saved[0] / "model.safetensors").stat().st_size
    assert f"{size:,} bytes (base model: 400,000 bytes, {400_000 / size:.1f} times" in text
    assert "![curves.png](curves.png)" in text and "(pictures/images.png)" in text
    assert "weights: 2-bit half per channel" in text and "left alone" in text


def test_what_is_not_known_is_not_told(saved: tuple[Path, Any]) -> None:
    bare = Card(Base("my model", {"license": "mit"}), "zsaq", True, (0,))
    card = written(bare, saved)
    metadata = card.data.to_dict()
    absent = {"base_model", "base_model_relation", "model-index", "language", "metrics", "datasets"}
    assert not absent & set(metadata)
    assert set(metadata["zsaq"]) == {"zero_shot", "real_data", "method", "quantization", "seeds"}
    assert (
        "has not been evaluated" in card.text
        and "None" not in card.text
        and "base model: " not in card.text.split("## P")[0]
    )
    assert eval_files(bare) == {}


def test_evaluation_files_name_the_hubs_benchmark_only_where_it_was_used() -> None:
    ((path, text),) = eval_files(CARD).items()
    (entry,) = parse_eval_result_entries(yaml.safe_load(text))
    assert path == ".eval_results/nyu-mll-glue-sst2.yaml"
    assert (entry.dataset_id, entry.task_id, entry.value) == ("nyu-mll/glue", "sst2", pytest.approx(0.89))
    assert entry.notes is not None and "accuracy" in entry.notes and "0.01" in entry.notes
    assert eval_files(replace(CARD, data=Data("a folder of mine", split="validation"))) == {}


def test_what_saw_real_data_never_carries_the_statement(saved: tuple[Path, Any]) -> None:
    with pytest.raises(ValueError, match="sees real data"):
        Card(BASE, "genie-real", True, (0,))
    card = written(Card(BASE, "genie-real", False, (0,)), saved)
    assert WITH_DATA in card.text and NO_DATA not in card.text
    metadata = card.data.to_dict()
    assert metadata["zsaq"]["zero_shot"] is False and metadata["zsaq"]["real_data"] == "used"
    assert not {"data-free", "zero-shot-quantization"} & set(metadata["tags"])


def test_a_causal_model_has_its_own_task(tmp_path: Path) -> None:
    student = quantize_model(gpt2(), QuantConfig.parse("w4a8"))
    student.save_pretrained(tmp_path)
    metadata = written(replace(CARD, method="zsaq"), (tmp_path, student)).data.to_dict()
    assert metadata["pipeline_tag"] == "text-generation" and "4-bit" in metadata["tags"]


def test_a_name_of_another_cannot_break_the_page(saved: tuple[Path, Any]) -> None:
    odd = "x | y\n# head <script> [a](b) `c`"
    card = written(replace(CARD, base=Base(odd, {"license": "mit"}), limits=(odd,)), saved)
    assert "\n# head" not in card.text and "<script>" not in card.text.replace("\\<script\\>", "")
    assert markdown("a|b") == "a\\|b"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"seeds": ()}, "seeds"),
        ({"seeds": (0, 0, 1)}, "seeds"),
        ({"seeds": (0, 1)}, "3 values of accuracy"),
        ({"data": None}, "scores need data"),
        ({"zero_shot": True, "method": "rtn-real"}, "sees real data"),
    ],
)
def test_a_card_that_cannot_be_is_refused(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        replace(CARD, **change)


def test_values_must_be_finite_and_licences_known() -> None:
    for values in ((), (float("nan"),), (float("inf"),)):
        with pytest.raises(ValueError, match="finite"):
            MetricScore("zsaq", "accuracy", values)
    for terms in ({"license_name": "x"}, {"license": "mit", "extra": "x"}):
        with pytest.raises(ValueError, match="license of tiny"):
            Base("tiny", terms)
    with pytest.raises(ValueError, match="epo id"):
        Base("tiny", {"license": "mit"}, id="../../etc")


def test_a_licence_is_inherited_from_the_base_models_card(tmp_path: Path, saved: tuple[Path, Any]) -> None:
    bert().save_pretrained(tmp_path)
    for unknown in (base_of(tmp_path), base_of("nobody/offline")):
        assert unknown.license == {}
        with pytest.raises(ValueError, match=r"names no licence, .*nothing is published without: give base=base_of\("):
            readme(replace(CARD, base=unknown), "me/tiny", *saved)
    assert base_of(tmp_path, "mit").license == {"license": "mit"}
    (tmp_path / "README.md").write_text("---\nlicense_name: own\n---\n# Base\n")
    assert base_of(tmp_path).license == {}
    terms = {"license": "other", "license_name": "own", "license_link": "https://example.org/own"}
    (tmp_path / "README.md").write_text(f"---\n{yaml.safe_dump(terms)}---\n# Base\n")
    base = base_of(tmp_path)
    assert base.license == terms and base.id is None and base.name == tmp_path.name
    assert base.sha256 is not None and len(base.sha256) == 64


def results(folder: Path, **change: Any) -> Path:
    folder.mkdir(exist_ok=True)
    replace(RESULTS, **change).write(folder)
    return folder


def test_a_card_is_read_from_runs_with_their_spread(tmp_path: Path, saved: tuple[Path, Any]) -> None:
    again = tuple(replace(row, scores={k: v + 0.02 for k, v in row.scores.items()}) for row in RESULTS.rows)
    one, two = results(tmp_path / "0"), results(tmp_path / "1", seed=1, rows=again)
    card = Card.of(one, two, language="en")
    assert card.seeds == (0, 1) and card.base == BASE and card.base_bytes == 1000 and card.config == W2
    student = {score.metric: score for score in card.scores if score.model == "zsaq"}
    assert set(student) == {"accuracy", "agreement"} and student["accuracy"].mean == pytest.approx(0.81)
    assert card.recipe == "recipes/one.py" and card.versions == {"zsaq": "0.1.0"} and card.data == DATA
    single = Card.of(one)
    assert [score.spread for score in single.scores] == [None] * 4 and "±" not in str(single.scores[0])
    text = written(card, saved).text
    assert "texts of the teacher's own" in text and "the names of the labels" in text
    assert Card.of(results(tmp_path / "2", data=None)).scores == ()


def test_a_run_that_does_not_tell_enough_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not say what was quantized: give base=base_of"):
        Card.of(results(tmp_path / "no base", base=None))
    assert Card.of(tmp_path / "no base", base=BASE).base == BASE
    with pytest.raises(ValueError, match="sees real data"):
        Card.of(results(tmp_path / "real", method="gptq-real", rows=(Row("gptq-real"),)))
    for text in ('{"format_version": 1}', "[]", '{"rows": [{"name": "zsaq", "scores": {"accuracy": NaN}}]}'):
        (tmp_path / "results.json").write_text(text)
        with pytest.raises(ValueError, match=r"results\.json cannot be read"):
            Card.of(tmp_path)


def test_results_of_another_model_make_no_card(tmp_path: Path, saved: tuple[Path, Any]) -> None:
    shutil.copytree(saved[0], tmp_path / "model")
    with pytest.raises(ValueError, match="belongs to another model"):
        Card.of(results(tmp_path / "model", fingerprint="0" * 64))
    assert Card.of(results(tmp_path / "model", fingerprint=fingerprint(tmp_path / "model"))).method == "zsaq"


def test_only_the_seed_may_differ_between_repeats(tmp_path: Path) -> None:
    one = results(tmp_path / "0")
    for change in ({"budget": {"steps": 1}}, {"zero_shot": False}, {"config": QuantConfig.parse("w4a8")}):
        with pytest.raises(ValueError, match="another run, not another seed"):
            Card.of(one, results(tmp_path / "1", seed=1, **change))
    with pytest.raises(ValueError, match="each once"):
        Card.of(one, results(tmp_path / "1"))
    with pytest.raises(ValueError, match="cannot be read"):
        Card.of(tmp_path / "nowhere")
