"""A run of transformers' Trainer that is over in four steps."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments

from students import VOCABULARY


class Rows(torch.utils.data.Dataset):
    """Ids, with a label for each row or for each token."""

    def __init__(self, family: str) -> None:
        self.ids = torch.arange(16 * 8).reshape(16, 8) * 7 % VOCABULARY
        self.labels = self.ids if family != "bert" else torch.arange(16) % 2

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[i], "labels": self.labels[i]}


def trainer(model: Any, family: str, folder: Path, **options: Any) -> Trainer:
    arguments = TrainingArguments(
        str(folder), max_steps=4, save_steps=2, per_device_train_batch_size=4, learning_rate=1e-3, use_cpu=True,
        report_to=[], disable_tqdm=True, lr_scheduler_type="constant", logging_strategy="no",
        dataloader_pin_memory=False, **options,
    )  # fmt: skip
    rows = Rows(family)
    return Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)


def tensors(model: torch.nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in model.state_dict().items()}


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [key for key in first if not torch.equal(first[key], second[key])] == []
