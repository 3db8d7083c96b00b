import copy
from collections.abc import Iterator

import pytest
import torch

from language_toys import bert, bpe, fit, job_of, opt, wordpiece
from toys import batches as toy_batches
from zsaq.language.job import TextJob


def test_the_generators_stay_as_they_are() -> None:
    job = job_of("bert")
    assert not isinstance(job.generator, str)
    before = copy.deepcopy(job.generator[0].state_dict())
    fit("zsaq-paper", job, generator_lr=1e-2)
    assert all(torch.equal(value, before[key]) for key, value in job.generator[0].state_dict().items())


def test_a_generator_from_a_folder_climbs_too_and_with_adapters(tmp_path) -> None:
    opt(bpe()).save_pretrained(tmp_path)
    bpe().save_pretrained(tmp_path)
    tokenizer = wordpiece()
    job = TextJob.of(bert(tokenizer), tokenizer, generator=str(tmp_path))
    job.length, job.batch_size, job.style = (4, 10), 4, {"refresh": 2}
    pair = job_of("bert")
    for name in ("llm-qat", "zsaq-paper"):
        ends = [[p.detach() for p in fit(name, each).parameters()] for each in (job, pair)]
        assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    pytest.importorskip("peft")
    for each in (job, pair):
        climber = each.ascent(0, lora=True)
        assert climber.reference is climber.text.generator
        trained = {n for n, p in climber.text.generator.named_parameters() if p.requires_grad}
        assert trained and all("lora" in n for n in trained)


def test_a_teacher_in_half_precision_climbs_in_full() -> None:
    job = TextJob.of(opt(bpe()).bfloat16(), bpe(), max_length=16)
    job.batch_size, job.style = 4, {"refresh": 2}
    climber = job.ascent(0)
    assert climber.text.generator.dtype == torch.float32 and climber.reference.dtype == torch.float32
    assert climber.reference is not job.teacher and job.teacher.dtype == torch.bfloat16


def test_rows_fit_the_teacher() -> None:
    tokenizer = wordpiece()
    job = TextJob.of(bert(tokenizer), tokenizer, generator=(opt(bpe()), bpe()))
    assert (job.max_length, job.length, job.batch_size, job.kind) == (32, (4, 30), 32, "classification")
    job = TextJob.of(opt(bpe()), bpe())
    assert (job.max_length, job.length, job.batch_size, job.kind) == (32, (30, 30), 16, "causal")
    tokenizer.model_max_length = 10**30
    teacher = bert(tokenizer)
    with pytest.raises(ValueError, match="max_length is 200; BertForSequenceClassification reads at most 32 tokens"):
        TextJob.of(teacher, tokenizer, max_length=200)
    assert TextJob.of(teacher, tokenizer, text_pair=True).length == (4, 15)
    batch = next(TextJob.of(teacher, tokenizer, text_pair=True).noise(0))
    assert batch["token_type_ids"].any() and batch["input_ids"].shape[1] <= 32


def test_what_a_job_lacks_is_named() -> None:
    tokenizer = wordpiece()
    teacher = bert(tokenizer)
    bare = TextJob.of(teacher)
    assert fit("rtn", bare) is not None
    for name in ("llm-qat", "random-qat", "gptq", "zsaq", "zsaq-paper"):
        with pytest.raises(ValueError, match="BertForSequenceClassification needs its tokenizer"):
            fit(name, bare)
    with pytest.raises(ValueError, match=r"give batches=\.\.\."):
        fit("distill", bare)
    with pytest.raises(ValueError, match=r"give real=\.\.\."):
        fit("distill-real", TextJob.of(teacher, tokenizer))
    with pytest.raises(ValueError, match="generator is a OPTForCausalLM; give a path"):
        TextJob.of(teacher, tokenizer, generator=opt(bpe()))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no pair"):
        fit("llm-qat", TextJob.of(teacher, tokenizer, generator=(opt(tokenizer), bpe())))
    with pytest.raises(ValueError, match="writes no tokens"):
        fit("llm-qat", TextJob.of(teacher, tokenizer, generator=(teacher, tokenizer)))
    with pytest.raises(ValueError, match="no model of transformers"):
        TextJob.of(torch.nn.Linear(2, 2), tokenizer)  # type: ignore[arg-type]


class Loader:
    """Batches that can be read again, and again, and are never held all at once."""

    passes = 0

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        self.passes += 1
        yield from toy_batches(2, size=4)


def test_batches_of_ones_own() -> None:
    teacher, loader = bert(wordpiece(tuple(f"w{i}" for i in range(40)))), Loader()
    fit("distill", TextJob.of(teacher, batches=loader), steps=5)
    assert loader.passes == 3
    with pytest.raises(ValueError, match="ran out at step 3 of 5"):
        fit("distill", TextJob.of(teacher, batches=iter(Loader())), steps=5)
    with pytest.raises(ValueError, match="no batches were given"):
        fit("distill", TextJob.of(teacher, batches=[]))
    with pytest.raises(ValueError, match="a batch is a Tensor; give dicts"):
        fit("distill", TextJob.of(teacher, batches=[torch.ones(2, 3)]))  # type: ignore[list-item]
