"""GymnasiumVecEnv under SB3's wrappers, helpers and algorithms."""

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from sb3_contrib import RecurrentPPO
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    VecCheckNan,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    is_vecenv_wrapped,
    sync_envs_normalization,
    unwrap_vec_normalize,
)

from sb3_laplace.vec_env import GymnasiumVecEnv, make_vec_env
from tests.scripted_env import TASKS, ScriptedEnv, ScriptedVectorEnv, assert_equal, oracle, sync

# What SB3's make_vec_env says of environments without images
pytestmark = pytest.mark.filterwarnings("ignore:.*not in the possible render_modes")


@pytest.mark.parametrize(
    "wrap",
    [
        VecNormalize,
        VecCheckNan,
        lambda venv: VecFrameStack(venv, 3),
        pytest.param(VecMonitor, marks=pytest.mark.filterwarnings("ignore:The environment is already wrapped")),
    ],
)
@pytest.mark.parametrize("native", [True, False])
def test_sb3_wrappers(wrap: Any, native: bool) -> None:
    expected, actual = wrap(oracle(3)), wrap(GymnasiumVecEnv(ScriptedVectorEnv(3) if native else sync(3)))
    for venv in (expected, actual):
        venv.seed(4)
    assert_equal(expected.reset(), actual.reset())
    for k in range(20):
        obs, rewards, dones, infos = expected.step(np.full(3, k % 5))
        actual_obs, actual_rewards, actual_dones, actual_infos = actual.step(np.full(3, k % 5))
        np.testing.assert_allclose(obs, actual_obs, rtol=1e-5)
        np.testing.assert_allclose(rewards, actual_rewards, rtol=1e-5)
        assert_equal(dones, actual_dones)
        for i in np.flatnonzero(dones):
            np.testing.assert_allclose(
                infos[i]["terminal_observation"], actual_infos[i]["terminal_observation"], rtol=1e-5
            )
            for key in ("r", "l"):
                assert infos[i]["episode"][key] == pytest.approx(actual_infos[i]["episode"][key], abs=1e-5)


@pytest.mark.filterwarnings("ignore:.*resets an environment in the step after")
def test_frame_stack_over_next_step_starts_afresh() -> None:
    """Frames of an episode never reach into the next one, and a terminal observation is stacked once."""
    venv = VecFrameStack(GymnasiumVecEnv(sync(1, AutoresetMode.NEXT_STEP, obs_kind="dict", max_length=3)), 2)
    venv.seed(0)
    venv.reset()
    after_pseudo = False
    for _ in range(30):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            obs, _, dones, infos = venv.step(np.zeros(1))
        time = obs["vector"].reshape(2, 3)[:, 0]  # ScriptedEnv: the first number is the step
        if dones[0]:
            assert infos[0]["terminal_observation"]["vector"].shape == (6,)
            assert time[0] == 0  # what SB3 fills in before a first frame
        elif after_pseudo:
            np.testing.assert_array_equal(time, [0, 1])
        after_pseudo = dones[0] and "episode" not in infos[0]


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.filterwarnings("ignore:.*resets an environment in the step after")
def test_evaluate_policy(mode: AutoresetMode, n_envs: int) -> None:
    class Zero:
        def predict(self, obs: np.ndarray, **_: Any) -> tuple[np.ndarray, None]:
            return np.zeros(len(obs)), None

    expected, actual = oracle(n_envs), GymnasiumVecEnv(sync(n_envs, mode))
    for venv in (expected, actual):
        venv.seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = [evaluate_policy(Zero(), venv, 9, return_episode_rewards=True) for venv in (expected, actual)]  # type: ignore[arg-type]
    # NEXT_STEP spends steps on resets, so that the environments end their episodes in another order
    assert sorted(results[1][0]) == pytest.approx(sorted(results[0][0]), abs=1e-5)
    assert sorted(results[1][1]) == sorted(results[0][1])


def test_helpers_and_eval_callback(tmp_path: Any) -> None:
    def make() -> VecNormalize:
        return VecNormalize(make_vec_env(TASKS[0], 4, seed=1, env_kwargs={"trial_length": 5}))

    venv, eval_venv = make(), make()
    assert is_vecenv_wrapped(venv, VecNormalize)
    assert unwrap_vec_normalize(venv) is venv
    assert venv.env_is_wrapped(Monitor) == [True] * 4
    assert venv.env_is_wrapped(gym.wrappers.TimeLimit, indices=[0, 1]) == [False] * 2
    wrapped = SyncVectorEnv([lambda: gym.wrappers.TimeLimit(ScriptedEnv(), 3)], autoreset_mode=AutoresetMode.SAME_STEP)
    assert GymnasiumVecEnv(wrapped).env_is_wrapped(gym.wrappers.TimeLimit) == [True]

    model = PPO("MlpPolicy", venv, n_steps=16, batch_size=32, n_epochs=1)
    callback = EvalCallback(eval_venv, n_eval_episodes=6, eval_freq=16, verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.learn(128, callback)
    assert len(callback.evaluations_results) == 0  # no log_path
    assert 0 <= callback.last_mean_reward <= 5
    sync_envs_normalization(venv, eval_venv)
    assert_equal(eval_venv.obs_rms.mean, venv.obs_rms.mean)
    venv.save(str(tmp_path / "normalize.pkl"))
    loaded = VecNormalize.load(str(tmp_path / "normalize.pkl"), make_vec_env(TASKS[0], 4))
    assert_equal(loaded.obs_rms.mean, venv.obs_rms.mean)


@pytest.mark.filterwarnings("ignore:.*resets an environment in the step after")
@pytest.mark.parametrize(
    "make", [lambda: CartPoleVectorEnv(4, max_episode_steps=20), lambda: gym.make_vec(TASKS[2], 4)]
)
@pytest.mark.parametrize("algorithm", [PPO, RecurrentPPO, DQN])
def test_algorithms_run(make: Any, algorithm: Any) -> None:
    policy = "MlpLstmPolicy" if algorithm is RecurrentPPO else "MlpPolicy"
    kwargs = {"learning_starts": 40, "train_freq": 8} if algorithm is DQN else {"n_steps": 32, "n_epochs": 2}
    model = algorithm(policy, GymnasiumVecEnv(make()), batch_size=32, seed=0, **kwargs)
    model.learn(512)
    assert model.num_timesteps >= 512
    assert len(model.ep_info_buffer) >= 4
    assert {"r", "l", "t"} <= model.ep_info_buffer[0].keys()


def test_ppo_gives_the_same_run_as_on_dummy_vec_env() -> None:
    weights = []
    for venv in (oracle(3), GymnasiumVecEnv(ScriptedVectorEnv(3))):
        model = PPO("MlpPolicy", venv, n_steps=16, batch_size=24, n_epochs=2, seed=0, device="cpu")
        model.learn(96)
        weights.append(model.policy.state_dict())
    for key, value in weights[0].items():
        np.testing.assert_allclose(value.numpy(), weights[1][key].numpy(), rtol=1e-5, atol=1e-7)
