"""Cheetah and ant: equal to Gymnasium's step by step, rewards, tasks, simulations that blow up, images."""

import os
import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest

import sb3_laplace_envs as envs
from sb3_laplace_envs.tasks.mujoco_simulation import FRAME_SKIP, Simulation

mujoco = pytest.importorskip("mujoco", reason="needs mujoco: pip install 'sb3-laplace[mujoco]'")

pytestmark = pytest.mark.usefixtures("away")

CHEETAHS = [envs.HalfCheetahVelVectorEnv, envs.HalfCheetahDirVectorEnv]
ROBOTS = {
    "HalfCheetah-v5": (envs.HalfCheetahDirVectorEnv, {}),
    "Ant-v5": (envs.AntDirVectorEnv, {"include_cfrc_ext_in_observation": False}),
}


def physics(env):
    """The state of one of Gymnasium's environments."""
    kind = mujoco.mjtState.mjSTATE_FULLPHYSICS
    state = np.empty(mujoco.mj_stateSize(env.model, kind))
    mujoco.mj_getState(env.model, env.data, state, kind)
    return state


@pytest.mark.parametrize("gymnasium_id", ROBOTS)
def test_starts_as_gymnasium_does(gymnasium_id):
    cls, kwargs = ROBOTS[gymnasium_id]
    theirs = gym.make(gymnasium_id, **kwargs).unwrapped
    ours = cls(num_envs=5)
    observations, _ = ours.reset(seed=3)
    for i in range(5):
        expected, _ = theirs.reset(seed=3 + i)
        np.testing.assert_array_equal(observations[i], expected.astype(np.float32))
        np.testing.assert_array_equal(ours._states[i], physics(theirs))


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("gymnasium_id", ROBOTS)
def test_every_step_is_gymnasiums(gymnasium_id, num_threads):
    """From the same state and under the same action. (On its own each would drift: the motion is chaotic.)"""
    cls, kwargs = ROBOTS[gymnasium_id]
    theirs = [gym.make(gymnasium_id, **kwargs).unwrapped for _ in range(3)]
    ours = cls(num_envs=3, num_threads=num_threads, episode_length=1000)
    ours.action_space.seed(0)
    is_ant = gymnasium_id == "Ant-v5"
    steps_of_an_ant_that_fell, most_contact = 0, 0.0
    for start in range(4):
        ours.reset(seed=10 * start, options={"task": np.ones((3, 1))})
        for i, env in enumerate(theirs):
            env.reset(seed=10 * start + i)
        for _ in range(80):
            for i, env in enumerate(theirs):
                ours._states[i] = physics(env)
                if is_ant:
                    ours._torso[i] = env.data.body(1).xpos[:2]
            ours._is_over[:] = False
            actions = ours.action_space.sample()
            observations, rewards, terminations, _, infos = ours.advance(actions)
            for i, env in enumerate(theirs):
                expected, reward, terminated, _, info = env.step(actions[i])
                np.testing.assert_allclose(ours._states[i], physics(env), rtol=0, atol=1e-6)
                np.testing.assert_allclose(observations[i], expected, rtol=1e-6, atol=1e-6)
                assert infos["velocity"][i] == pytest.approx(info["x_velocity"], abs=1e-6)
                assert terminations[i] == terminated
                if is_ant:
                    assert infos["contact_cost"][i] == pytest.approx(-info["reward_contact"], abs=1e-6)
                    assert infos["control_cost"][i] == pytest.approx(-info["reward_ctrl"], abs=1e-6)
                    # Ours is given in the step that ends an episode too
                    steps_of_an_ant_that_fell += terminated
                    most_contact = max(most_contact, infos["contact_cost"][i])
                    assert rewards[i] == pytest.approx(reward + terminated, abs=1e-6)
                else:
                    assert infos["control_cost"][i] == pytest.approx(-info["reward_ctrl"] / 2, abs=1e-6)
                    assert rewards[i] == pytest.approx(reward - info["reward_ctrl"] / 2, abs=1e-6)
    assert not is_ant or (most_contact > 1e-3 and steps_of_an_ant_that_fell > 0)


@pytest.mark.parametrize("gymnasium_id", ROBOTS)
def test_an_episode_begins_as_gymnasiums(gymnasium_id):
    """Twenty steps on its own, nothing put in step."""
    cls, kwargs = ROBOTS[gymnasium_id]
    theirs, ours = gym.make(gymnasium_id, **kwargs).unwrapped, cls()
    ours.action_space.seed(0)
    ours.reset(seed=0)
    theirs.reset(seed=0)
    for _ in range(20):
        actions = ours.action_space.sample()
        observations, *_ = ours.step(actions)
        np.testing.assert_allclose(observations[0], theirs.step(actions[0])[0], rtol=1e-6, atol=1e-6)


def play(env):
    """Actions, states before and after (time, positions, velocities), rewards, metrics; nothing ends."""
    env.action_space.seed(0)
    env.reset(seed=0)
    for _ in range(40):
        before = env._states.copy()
        actions = 0.4 * env.action_space.sample()
        _, rewards, terminations, truncations, infos = env.step(actions)
        assert not (terminations | truncations).any()
        yield actions, before, env._states, rewards, infos


@pytest.mark.parametrize("cls", CHEETAHS)
def test_rewards_of_a_cheetah(cls):
    env = cls(num_envs=6)
    for actions, before, after, rewards, infos in play(env):
        velocity = (after[:, 1] - before[:, 1]) / 0.05
        cost = 0.05 * (actions**2).sum(axis=1)
        task = env.task[:, 0]
        forward = -abs(velocity - task) if cls is envs.HalfCheetahVelVectorEnv else velocity * task
        np.testing.assert_allclose(rewards, forward - cost, atol=1e-6)
        np.testing.assert_allclose(infos["control_cost"], cost, atol=1e-6)
        reported = velocity if cls is envs.HalfCheetahVelVectorEnv else velocity * task
        np.testing.assert_allclose(infos["velocity"], reported, atol=1e-9)
        assert not infos["physics_blow_up"].any()


@pytest.mark.parametrize("directions", ["forward_backward", "circle"])
def test_rewards_of_an_ant(directions):
    env = envs.AntDirVectorEnv(num_envs=6, directions=directions)
    torso = None
    for actions, _, _, rewards, infos in play(env):
        if torso is not None:
            moved = (env._torso - torso) / 0.05
            direction = env.task if directions == "circle" else np.hstack([env.task, np.zeros((6, 1))])
            velocity = (moved * direction).sum(axis=1)
            np.testing.assert_allclose(infos["velocity"], velocity, atol=1e-9)
            forces = 0.0005 * (np.clip(env._contact_forces, -1, 1) ** 2).sum(axis=(1, 2))
            expected = velocity - 0.5 * (actions**2).sum(axis=1) - forces + 1.0
            np.testing.assert_allclose(rewards, expected, atol=1e-6)
            assert abs(moved).max() > 0.1
        torso = env._torso.copy()


@pytest.mark.parametrize(
    ("height", "ends"), [(0.19, True), (0.2, False), (0.21, False), (0.99, False), (1.0, False), (1.01, True)]
)
def test_an_ant_ends_outside_its_heights(height, ends, monkeypatch):
    env = envs.AntDirVectorEnv(num_envs=2)
    env.reset(seed=0)
    simulate = env._simulate

    def lifted(actions):
        states = simulate(actions)
        states[1, 3] = height
        return states

    monkeypatch.setattr(env, "_simulate", lifted)
    _, rewards, terminations, truncations, infos = env.step(np.zeros((2, 8)))
    assert terminations.tolist() == [False, ends]
    assert not truncations.any()
    assert ("final_obs" in infos) == ends
    assert not ends or infos["final_obs"][1][0] == np.float32(height)
    np.testing.assert_allclose(rewards, infos["velocity"] - infos["contact_cost"] + 1.0, rtol=1e-12)


def test_distributions_of_tasks():
    rng = np.random.default_rng(0)
    targets = envs.HalfCheetahVelVectorEnv().sample_tasks(20_000, rng)[:, 0]
    share, _ = np.histogram(targets, bins=10, range=(0.0, 3.0))
    assert share.sum() == 20_000
    np.testing.assert_allclose(share / 20_000, 0.1, atol=0.01)
    for env in (envs.HalfCheetahDirVectorEnv(), envs.AntDirVectorEnv()):
        signs = env.sample_tasks(20_000, rng)
        assert set(signs[:, 0]) == {-1.0, 1.0}
        assert abs(signs.mean()) < 0.03
    directions = envs.AntDirVectorEnv(directions="circle").sample_tasks(20_000, rng)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1.0, rtol=1e-12)
    share, _ = np.histogram(np.arctan2(*directions.T), bins=10, range=(-np.pi, np.pi))
    np.testing.assert_allclose(share / 20_000, 0.1, atol=0.01)


def test_any_target_velocity_may_be_given():
    env = envs.HalfCheetahVelEnv()
    env.reset(seed=0, options={"task": [7]})
    _, reward, _, _, info = env.step(np.zeros(6))
    assert reward == -abs(info["velocity"] - 7.0)


def test_episode_lengths():
    for cls in (envs.HalfCheetahVelEnv, envs.HalfCheetahDirEnv, envs.AntDirEnv):
        assert cls().batch.episode_length == 200


class TestBlowUp:
    @pytest.mark.parametrize("cls", [*CHEETAHS, envs.AntDirVectorEnv])
    def test_resets_that_environment_alone(self, cls):
        env, other = cls(num_envs=4, num_threads=2), cls(num_envs=4, num_threads=2)
        env.action_space.seed(0)
        for one in (env, other):
            one.reset(seed=0)
            one.step(np.zeros(one.action_space.shape))
        env._states[2, -1] = 9e9
        shown = env._observe()[2]
        start, task = env._states[2, 1:].copy(), env.task[2]
        fine = np.array([True, True, False, True])
        actions = env.action_space.sample()
        with pytest.warns(UserWarning, match=r"blew up in the environments \[2\]"):
            observations, rewards, terminations, truncations, infos = env.step(actions)
        expected = other.step(actions)
        np.testing.assert_array_equal(observations[fine], expected[0][fine])
        np.testing.assert_array_equal(rewards[fine], expected[1][fine])
        assert truncations.tolist() == (~fine).tolist()
        assert not terminations.any()
        assert infos["physics_blow_up"].tolist() == [0, 0, 1, 0]
        assert infos["final_info"]["physics_blow_up"].tolist() == [0, 0, 1, 0]

        # It stood still, and begins the next episode
        np.testing.assert_array_equal(infos["final_obs"][2], shown)
        squares = (actions[2].astype(np.float64) ** 2).sum()
        if cls is envs.AntDirVectorEnv:
            assert rewards[2] == pytest.approx(1.0 - 0.5 * squares)
        else:
            still = -task[0] if cls is envs.HalfCheetahVelVectorEnv else 0.0
            assert rewards[2] == pytest.approx(still - 0.05 * squares)
        assert np.abs(observations[2]).max() < 2.0
        assert (env._states[2, 1:] != start).all()
        for _ in range(3):
            observations, *_ = env.step(env.action_space.sample())
            assert np.isfinite(observations).all()

    def test_is_said_once_and_ends_a_single_environment(self):
        env = envs.HalfCheetahVelEnv()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for _ in range(3):
                env.reset(seed=0)
                env.batch._states[0, -1] = 9e9
                _, _, terminated, truncated, info = env.step(np.zeros(6))
                assert (terminated, truncated, info["physics_blow_up"]) == (False, True, 1)
        assert sum("blew up" in str(warning.message) for warning in said) == 1

    def test_is_seen_in_what_mujoco_leaves(self):
        simulation = Simulation("half_cheetah.xml", 1)
        before = np.tile(simulation.initial_state, (7, 1))
        before[:, 0] = np.arange(7) * simulation.dt
        before[6, -1] = np.nan
        after = simulation.advance(before, np.zeros((7, 6)))
        assert np.isfinite(after).all()  # MuJoCo began again
        assert simulation.blew_up(before, after).tolist() == [False] * 6 + [True]
        after[1, 3], after[2, 12], after[3, 12], after[4, 0] = np.nan, 1.1e10, -np.inf, after[4, 0] - 0.01
        assert simulation.blew_up(before, after).tolist() == [False, True, True, True, True, False, True]


def test_a_control_step_is_five_of_mujocos():
    assert FRAME_SKIP == 5
    for cls in (*CHEETAHS, envs.AntDirVectorEnv):
        assert cls().dt == pytest.approx(0.05)


@pytest.mark.parametrize("cls", [envs.HalfCheetahVelEnv, envs.AntDirEnv])
def test_closing_lets_go_of_the_threads(cls):
    env = cls(num_threads=2)
    env.reset(seed=0)
    env.close()
    with pytest.raises(RuntimeError, match="shutdown"):
        env.step(np.zeros(env.action_space.shape))


IMAGE = """
import numpy as np, sb3_laplace_envs as envs
for cls in (envs.HalfCheetahVelVectorEnv, envs.AntDirVectorEnv):
    env = cls(num_envs=2, render_mode="rgb_array")
    env.reset(seed=0)
    frames = env.render()
    assert [(frame.shape, frame.dtype) for frame in frames] == [((480, 480, 3), np.uint8)] * 2
    assert (frames[0] != frames[1]).any() and frames[0].std() > 10.0
    before, states = env.render(), env._states.copy()
    assert (before[0] == frames[0]).all()
    env.step(np.ones(env.action_space.shape))
    assert (env.render()[0] != frames[0]).any()
    env.close()
single = envs.HalfCheetahVelEnv(render_mode="rgb_array")
single.reset(seed=0)
assert single.render().shape == (480, 480, 3)
"""


def draw(backend):
    environment = {**os.environ, "MUJOCO_GL": backend}
    return subprocess.run([sys.executable, "-c", IMAGE], capture_output=True, text=True, env=environment)


def test_images():
    # In a process of its own: MuJoCo chooses how to render when it is imported
    runs = [draw(backend) for backend in ("egl", "osmesa")]
    if all("needs OpenGL" in run.stderr for run in runs):
        pytest.skip("MuJoCo can render here with neither EGL nor OSMesa")
    for run in runs:
        assert run.returncode == 0 or "needs OpenGL" in run.stderr, run.stderr


def test_says_what_to_do_where_nothing_can_be_drawn():
    run = draw("off")
    assert run.returncode != 0
    assert "RuntimeError: render_mode 'rgb_array' needs OpenGL" in run.stderr
    assert "MUJOCO_GL to 'egl' or to 'osmesa'" in run.stderr


def test_no_image_without_a_render_mode():
    env = envs.HalfCheetahVelEnv()
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="render_mode='rgb_array'"):
        assert env.render() is None
