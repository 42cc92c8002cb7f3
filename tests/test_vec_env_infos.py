"""GymnasiumVecEnv: what it returns and reports of a step, and what its episodes sum up."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_laplace.vec_env import GymnasiumVecEnv
from sb3_laplace.vec_env.infos import unbatch, with_final_infos
from tests.scripted_env import LOSSLESS, ScriptedEnv, ScriptedVectorEnv, assert_equal, assert_same_run, sync


class ReusingEnv(ScriptedEnv):
    """Returns the same array at each step."""

    def _observe(self) -> Any:
        self.buffer = getattr(self, "buffer", np.zeros(3, dtype=np.float32))
        self.buffer[:] = super()._observe()
        return self.buffer


@pytest.mark.parametrize("mode", LOSSLESS)
@pytest.mark.parametrize("kind", ["box", "dict", "single"])
def test_nothing_returned_changes_later(mode: AutoresetMode, kind: str) -> None:
    """ScriptedVectorEnv returns the same buffers at each step."""
    env: VectorEnv
    if kind == "single":
        env = SyncVectorEnv([ReusingEnv] * 2, copy=False, autoreset_mode=mode)
    else:
        env = ScriptedVectorEnv(2, mode, obs_kind=kind)
    venv = GymnasiumVecEnv(env)
    venv.seed(0)
    kept = [(venv.reset(), np.zeros(2), np.zeros(2), [{}, {}])]
    snapshots = [repr(kept[0])]
    for _ in range(10):
        kept.append(venv.step(np.zeros(2)))
        snapshots.append(repr(kept[-1]))
    assert [repr(step) for step in kept] == snapshots


def test_types_are_those_of_sb3() -> None:
    venv = GymnasiumVecEnv(ScriptedVectorEnv(2, max_length=1))
    venv.reset()
    _, rewards, dones, infos = venv.step(np.zeros(2))
    assert (rewards.dtype, rewards.shape, dones.dtype, dones.shape) == (np.float32, (2,), bool, (2,))
    assert {type(infos[0]["episode"][key]) for key in ("r", "t", "figure")} == {float}
    assert type(infos[0]["episode"]["l"]) is int
    assert infos[0]["episode"]["r"] == round(float(rewards[0]), 6) != float(rewards[0])
    assert type(infos[0]["TimeLimit.truncated"]) is bool


def test_each_environment_has_a_dict_of_its_own() -> None:
    venv = GymnasiumVecEnv(ScriptedVectorEnv(2, max_length=100))
    venv.seed(0)
    venv.reset()
    *_, infos = venv.step(np.zeros(2))
    infos[0]["mine"] = 1
    *_, later = venv.step(np.zeros(2))
    assert infos[1] == {}
    assert later == [{}, {}]


def test_step_infos_are_the_steps_own() -> None:
    """Also where an environment ended, and reached through SB3's wrappers; a reset reports nothing of a step."""
    inner = GymnasiumVecEnv(sync(2, max_length=2))
    venv = VecNormalize(inner)
    venv.seed(0)
    venv.reset()
    assert venv.step_infos == {}
    n_ends = 0
    for _ in range(10):
        _, _, dones, infos = venv.step(np.zeros(2))
        assert (venv.step_infos["figure"] > -1000).all()
        assert not {"final_obs", "final_info", "_final_obs", "_final_info"} & venv.step_infos.keys()
        for i in np.flatnonzero(dones):
            n_ends += 1
            assert venv.step_infos["figure"][i] == infos[i]["figure"]
            assert venv.step_infos["nested"]["deep"][i] == infos[i]["nested"]["deep"] == 10 * infos[i]["count"]
        assert not venv.step_infos["_start"].any() if "start" in venv.step_infos else True
    assert n_ends > 5
    venv.reset()
    assert venv.step_infos == {}


def test_final_infos_of_another_shape_hold_for_the_ended_alone() -> None:
    done = np.array([True, False])
    merged = with_final_infos({"a": np.zeros((2, 3)), "_a": ~done}, {"a": np.ones((2, 2)), "_a": done}, done)
    assert unbatch(merged, np.arange(2), 2)[1] == {}
    assert_equal(unbatch(merged, np.arange(1), 2)[0], {"a": np.ones(2)})


def test_a_reset_starts_the_sums_again() -> None:
    venv = GymnasiumVecEnv(ScriptedVectorEnv(1, max_length=50))
    venv.seed(0)
    venv.reset()
    for _ in range(5):
        *_, dones, _ = venv.step(np.zeros(1))
        assert not dones.any()
    venv.reset()
    total, length = 0.0, 0
    while not dones.any():
        _, _, dones, infos = venv.step(np.zeros(1))
        total, length = total + venv.step_infos["figure"][0], length + 1
    assert infos[0]["episode"]["figure"] == pytest.approx(total)
    assert infos[0]["episode"]["l"] == length


def test_a_monitor_inside_keeps_its_statistics() -> None:
    """Rewards changed outside of a Monitor do not change what it reports, as in SB3."""

    def make() -> gym.Env:
        return gym.wrappers.TransformReward(Monitor(ScriptedEnv()), lambda reward: reward + 100)

    expected, actual = (
        DummyVecEnv([make]),
        GymnasiumVecEnv(SyncVectorEnv([make], autoreset_mode=AutoresetMode.SAME_STEP)),
    )
    expected.seed(0)
    actual.seed(0)
    assert assert_same_run(expected, actual, 20) > 4
