"""Settings shared by all tests."""

import pytest
import torch as th
from hypothesis import settings

# Small tensors: more threads only wait for one another
th.set_num_threads(1)
# Its assertions say what differed, as those in the tests do
pytest.register_assert_rewrite("tests.scripted_env")
settings.register_profile("tests", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("tests")


@pytest.fixture(autouse=True)
def _seed() -> None:
    th.manual_seed(0)
