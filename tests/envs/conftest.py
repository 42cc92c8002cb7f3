"""Fixtures of the environments' tests."""

import gymnasium as gym
import pytest

import sb3_laplace_envs  # noqa: F401 (registers the tasks)
from tests.envs_of_episodes import TASKS, needs_mujoco

IDS = [f"sb3_laplace/{task}-v0" for task in ("FourierRegression", "DirichletBandit", "GridNavigation")]


@pytest.fixture(params=IDS)
def env_id(request: pytest.FixtureRequest) -> str:
    """Each task's id in turn."""
    return request.param


@pytest.fixture
def single(env_id: str) -> gym.Env:
    """The single environment, without Gymnasium's wrappers."""
    return gym.make(env_id).unwrapped


@pytest.fixture(
    params=[name if name in ("point", "sparse") else pytest.param(name, marks=needs_mujoco) for name in TASKS]
)
def name(request):
    """Each task with episodes of its own in turn."""
    return request.param


@pytest.fixture
def away(tmp_path, monkeypatch):
    """MuJoCo writes its warnings into a file in the working directory."""
    monkeypatch.chdir(tmp_path)
