"""The point's geometry, its two rewards and its image, against numbers worked out by hand."""

import numpy as np
import pytest

from sb3_laplace_envs import PointRobotEnv, PointRobotVectorEnv
from sb3_laplace_envs.oracles import best_point_robot_return


def walk(env, goal, actions):
    """Positions and rewards of a walk to be made in one episode."""
    env.reset(seed=0, options={"task": goal})
    steps = [env.step(np.asarray(action, np.float32)) for action in actions]
    return np.array([step[0] for step in steps]), np.array([step[1] for step in steps])


def test_a_walk_worked_out_by_hand():
    positions, rewards = walk(PointRobotEnv(), (0.0, 1.0), [(1, 0), (0, 1), (-1, 0), (-0.5, 0.5)])
    np.testing.assert_allclose(positions, [(0.1, 0), (0.1, 0.1), (0, 0.1), (-0.05, 0.15)], atol=1e-7)
    squares = [0.1**2 + 1, 0.1**2 + 0.9**2, 0.9**2, 0.05**2 + 0.85**2]
    np.testing.assert_allclose(rewards, -np.sqrt(squares), rtol=1e-12)


def test_sparse_reward_begins_at_the_radius():
    actions = [(0, 1)] * 13
    positions, rewards = walk(PointRobotEnv(sparse=True), (0.0, 1.0), actions)
    distances = np.abs(positions[:, 1].astype(np.float64) - 1.0)
    np.testing.assert_allclose(rewards[:7], 0.0)
    # 0.8 is on the edge, where rounding decides
    np.testing.assert_allclose(rewards[8:11], [0.9, 1.0, 0.9], atol=1e-12)
    assert rewards[7] in (0.0, pytest.approx(0.8))
    np.testing.assert_allclose(rewards[12], 0.0)
    assert distances[12] > 0.2


@pytest.mark.parametrize("sparse", [False, True])
def test_rewards_are_functions_of_the_distance(sparse):
    env = PointRobotVectorEnv(num_envs=50, sparse=sparse)
    env.action_space.seed(0)
    env.reset(seed=0)
    goals, position = env.task, np.zeros((50, 2))
    rewarded = 0
    for t in range(60):
        # Half of them walk to their goal
        actions = np.where(np.arange(50)[:, None] < 25, np.clip((goals - position) * 10, -1, 1), 0.0)
        actions = np.where(np.arange(50)[:, None] < 25, actions, env.action_space.sample())
        position = position + actions / 10
        observations, rewards, terminations, _, infos = env.step(actions)
        distance = np.sqrt(((position - goals) ** 2).sum(axis=1))
        np.testing.assert_allclose(observations, position, atol=1e-6)
        np.testing.assert_allclose(infos["distance"], distance, atol=1e-12)
        expected = (1 - distance) * (distance <= 0.2) if sparse else -distance
        np.testing.assert_allclose(rewards, expected, atol=1e-12)
        assert not terminations.any()
        rewarded += (rewards > 0).sum()
        if t > 20:
            np.testing.assert_allclose(rewards[:25], float(sparse), atol=1e-12)
    assert (rewarded > 0) == sparse


def test_goals_lie_on_the_upper_semicircle():
    goals = PointRobotEnv().sample_tasks(20_000, np.random.default_rng(0))
    np.testing.assert_allclose(np.linalg.norm(goals, axis=1), 1.0, rtol=1e-12)
    assert goals[:, 1].min() >= 0.0
    share, _ = np.histogram(np.arctan2(goals[:, 1], goals[:, 0]), bins=10, range=(0.0, np.pi))
    np.testing.assert_allclose(share / 20_000, 0.1, atol=0.01)


def test_any_point_may_be_given():
    env = PointRobotEnv(task_in_observation=True)
    observation, _ = env.reset(options={"task": (3, -4)})
    np.testing.assert_array_equal(observation, [0, 0, 3, -4])
    assert env.step(np.zeros(2))[1] == -5.0


def test_episode_length():
    env = PointRobotEnv()
    env.reset(seed=0)
    assert [env.step(np.zeros(2))[3] for _ in range(100)] == [False] * 99 + [True]


def test_image():
    env = PointRobotVectorEnv(num_envs=2, render_mode="rgb_array")
    env.reset(options={"task": (-0.6, 0.8)})
    env.step(np.array([[1.0, 0.0], [0.0, 0.0]]))
    frames = env.render()
    assert [frame.shape for frame in frames] == [(192, 192, 3)] * 2
    assert frames[0].dtype == np.uint8
    # -1.5 to 1.5 in 192 pixels: 64 to a unit
    for frame, x in zip(frames, (0.1, 0.0), strict=True):
        red = np.argwhere((frame == (215, 60, 50)).all(axis=-1))
        np.testing.assert_allclose(red.mean(axis=0), (95.5, 95.5 + 64 * x), atol=0.6)
        green = np.argwhere((frame == (90, 180, 90)).all(axis=-1))
        np.testing.assert_allclose(green.mean(axis=0), (95.5 - 64 * 0.8, 95.5 - 64 * 0.6), atol=0.6)
    single = PointRobotEnv(render_mode="rgb_array")
    single.reset(options={"task": (-0.6, 0.8)})
    np.testing.assert_array_equal(single.render(), frames[1])


def test_no_image_without_a_render_mode():
    env = PointRobotEnv()
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="render_mode='rgb_array'"):
        assert env.render() is None


class TestBestReturn:
    def play(self, goals, sparse, noise, n_steps=30):
        """Returns of walking to the goal with noise on the moves."""
        env = PointRobotVectorEnv(num_envs=len(goals), episode_length=n_steps, sparse=sparse)
        position, _ = env.reset(seed=0, options={"task": goals})
        rng, total = np.random.default_rng(0), 0.0
        for _ in range(n_steps):
            moves = 10 * (goals - position) + noise * rng.normal(size=goals.shape)
            position, rewards, *_, infos = env.step(np.clip(moves, -1, 1))
            position = infos.get("final_obs", position)
            total += rewards
        return total

    @pytest.mark.parametrize("sparse", [False, True])
    def test_is_that_of_the_straight_way_and_of_no_other(self, sparse):
        # Not the goals of the task, of which many are reached to the step's length, where rounding decides
        goals = np.random.default_rng(1).uniform(-2.0, 2.0, (300, 2))
        best = best_point_robot_return(goals, 30, sparse)
        np.testing.assert_allclose(self.play(goals, sparse, 0.0), best, atol=1e-4)
        for noise in (0.03, 0.3, 1.0):
            others = self.play(goals, sparse, noise)
            assert (others <= best + 1e-6).all()
            assert others.mean() < best.mean() - 0.01

    def test_by_hand(self):
        # Along an axis 0.9 + 0.8 + ... + 0.1; on the diagonal the square root of 2 times 0.6071 + ... + 0.0071
        goals = np.array([[1.0, 0.0], [np.sqrt(0.5), np.sqrt(0.5)]])
        expected = [-4.5, -np.sqrt(2) * sum(np.sqrt(0.5) - 0.1 * t for t in range(1, 8))]
        np.testing.assert_allclose(best_point_robot_return(goals), expected, rtol=1e-12)
        with pytest.raises(ValueError, match="goals must"):
            best_point_robot_return(np.zeros((3, 3)))
