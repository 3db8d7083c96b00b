"""Every test runs offline, on one thread, from the same seeds."""

import os

# Before any import that reads them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "Agg"

import random

import hypothesis
import numpy as np
import pytest
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile("zsaq", derandomize=True, deadline=None, max_examples=50)
hypothesis.settings.load_profile("zsaq")


@pytest.fixture(autouse=True)
def seed() -> int:
    """Seeds python, numpy and torch alike before each test; a test that asks for it gets the seed."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    return 0
