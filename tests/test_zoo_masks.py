"""Action masks in RL Zoo's programs: the environments refuse what they do not allow."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import yaml
from sb3_contrib.common.wrappers import ActionMasker

from sb3_laplace import LaplaceRecurrentPPO
from tests.masked_env import MaskedEnv
from tests.zoo_helpers import train

ENV = "MaskedTestEnv-v0"
HYPERPARAMS: dict[str, Any] = {
    "policy": "LaplaceLstmPolicy",
    "n_timesteps": 200,
    "n_envs": 2,
    "n_steps": 20,
    "batch_size": 40,
    "n_epochs": 1,
    "policy_kwargs": "dict(lstm_hidden_size=8)",
}


class Masker(ActionMasker):
    """What a configuration names, which cannot hold a function."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env, lambda one: one.get_wrapper_attr("mask"))


class Silent(MaskedEnv):
    """Without sb3-contrib's method."""

    def __getattribute__(self, name: str) -> Any:
        if name == "action_masks":
            raise AttributeError(name)
        return super().__getattribute__(name)


@pytest.fixture(params=[None, "tests.test_zoo_masks.Masker"])
def config(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    gym.register(ENV, entry_point=Silent if request.param else MaskedEnv, max_episode_steps=50)
    wrapper = {"env_wrapper": request.param} if request.param else {}
    Path("config.yml").write_text(yaml.safe_dump({ENV: HYPERPARAMS | wrapper}))
    yield "config.yml"
    del gym.registry[ENV]


def test_training_evaluating_and_playing(config: str) -> None:
    assert train("-conf", config, "--seed", 1, "--eval-freq", 50, "--eval-episodes", 3, env=ENV) == 0
    run = Path("logs") / "laplace_ppo_lstm" / f"{ENV}_1"
    assert np.load(run / "evaluations.npz")["results"].shape == (4, 3)
    model = LaplaceRecurrentPPO.load(run / f"{ENV}.zip")
    assert model.use_masking is None
    assert train("-f", "logs", "--no-render", "-n", 100, "--stochastic", env=ENV, command="enjoy") == 0


def test_tuning(config: str) -> None:
    options = ["-conf", config, "-n", 400, "--n-trials", 1, "--eval-episodes", 2, "--n-evaluations", 1]
    assert train(*options, "--pruner", "none", env=ENV, command="tune") == 0
