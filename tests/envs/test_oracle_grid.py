"""The grid's oracle: the published optimum, the search against dynamic programming, the posterior."""

import itertools

import numpy as np
import pytest

from sb3_laplace_envs import GridNavigationVectorEnv
from sb3_laplace_envs.oracles import BayesOptimalNavigation
from sb3_laplace_envs.oracles.grid_navigation import best_order


def goals_reached(trial_length, play=(), n_trials=1, size=5, max_attempt_steps=15):
    """Goals that the player reaches in its last trial, for each goal cell.

    :param play: The first moves, (steps, n_goals), in the place of its own
    """
    goals = np.array(list(itertools.product(range(size), range(size)))[1:])
    env = GridNavigationVectorEnv(len(goals), trial_length, size, max_attempt_steps)
    oracle = BayesOptimalNavigation(env)
    observations, _ = env.reset(options={"task": goals})
    for _ in range(n_trials):
        total = np.zeros(len(goals))
        for step in range(trial_length):
            oracle.observe(observations)
            actions = play[step] if step < len(play) else oracle.act()
            observations, rewards, *_ = env.step(actions)
            total += rewards
    return total


def best_possible(trial_length, max_attempt_steps, size=3):
    """The most goals that can be expected, by dynamic programming over all pairs of a cell and a set of visited cells.

    Until the goal is found, all that a player can do is choose a walk.
    """
    states = {((0, 0), frozenset([(0, 0)])): 0}
    for step in range(1, trial_length + 1):
        following = {}
        for ((row, column), visited), total in states.items():
            for move in ((-1, 0), (1, 0), (0, -1), (0, 1)):
                cell = min(max(row + move[0], 0), size - 1), min(max(column + move[1], 0), size - 1)
                now = total if cell in visited else total + 1 + (trial_length - step) // sum(cell)
                state = (0, 0) if step % max_attempt_steps == 0 else cell, visited | {cell}
                following[state] = max(following.get(state, 0), now)
        states = following
    return max(states.values()) / (size**2 - 1)


class TestGridPlayer:
    @pytest.mark.parametrize(("trial_length", "expected"), [(60, 17.21), (100, 30.17), (200, 62.63)])
    def test_reaches_the_published_optimum(self, trial_length, expected):
        assert goals_reached(trial_length, n_trials=2).mean() == pytest.approx(expected, abs=0.0051)

    @pytest.mark.parametrize("trial_length", [5, 9, 12, 20])
    @pytest.mark.parametrize("max_attempt_steps", [4, 5, 6, 15])
    def test_no_player_is_better(self, max_attempt_steps, trial_length):
        goals = goals_reached(trial_length, size=3, max_attempt_steps=max_attempt_steps)
        assert goals.mean() == pytest.approx(best_possible(trial_length, max_attempt_steps))

    @pytest.mark.parametrize("trial_length", [60, 100, 200])
    def test_a_narrow_search_finds_the_same(self, trial_length, monkeypatch):
        """The optimum does not hang on how many walks are kept: a tenth of them is enough."""
        wide = goals_reached(trial_length).mean()
        monkeypatch.setattr("sb3_laplace_envs.oracles.grid_navigation._BEAM_WIDTH", 300)
        monkeypatch.setattr("sb3_laplace_envs.oracles.grid_navigation.best_order", best_order.__wrapped__)
        assert goals_reached(trial_length).mean() == wide

    def test_order(self):
        """Each cell once, also where the trial is too short to visit them all."""
        for size, trial_length in ((2, 1), (5, 3), (5, 100), (9, 40)):
            order = best_order(size, 2 * size, trial_length)
            assert sorted(order) == list(range(1, size**2))

    def test_posterior(self):
        env = GridNavigationVectorEnv(2, trial_length=50, size=3)
        oracle = BayesOptimalNavigation(env)
        observations, _ = env.reset(options={"task": [(0, 2), (2, 2)]})
        expected = np.ones((2, 9))
        expected[:, 0] = 0
        for action, cell in ((3, 1), (3, 2), (2, 0)):
            oracle.observe(observations)
            mean, covariance = oracle.posterior()
            np.testing.assert_allclose(mean, expected / expected.sum(axis=1, keepdims=True))
            for i in range(2):
                np.testing.assert_allclose(covariance[i], np.diag(mean[i]) - np.outer(mean[i], mean[i]))
            observations, rewards, *_ = env.step(np.array([action, action]))
            expected[:, cell] = 0
            if rewards[0]:
                expected[0] = np.arange(9) == 2

    def test_posterior_at_the_end_of_an_attempt(self):
        """The cell of an attempt's last step is ruled out, though the observation shows the start."""
        env = GridNavigationVectorEnv(1, trial_length=50, size=3, max_attempt_steps=4)
        oracle = BayesOptimalNavigation(env)
        observations, _ = env.reset(options={"task": (2, 2)})
        for action in (3, 3, 1, 2):
            oracle.observe(observations)
            observations, *_ = env.step(np.array([action]))
        oracle.observe(observations)
        assert np.flatnonzero(oracle.posterior().mean[0]).tolist() == [3, 6, 7, 8]
        assert observations[0, 0] == 1.0

    def test_goes_on_from_another_way(self):
        """After moves that were not its own it goes back for the cells that it left out."""
        env = GridNavigationVectorEnv(1, trial_length=100)
        oracle = BayesOptimalNavigation(env)
        first = best_order(5, 15, 100)[0]
        away = {1: 1, 5: 3}[first]  # down where the player would go right, right where it would go down
        observations, _ = env.reset(options={"task": divmod(first, 5)})
        for _ in range(3):
            oracle.observe(observations)
            observations, *_ = env.step(np.array([away]))
        rewards = []
        for _ in range(4):
            oracle.observe(observations)
            observations, reward, *_ = env.step(oracle.act())
            rewards.append(reward[0])
        assert rewards == [0, 0, 0, 1]
        play = np.random.default_rng(0).integers(4, size=(12, 24))
        assert goals_reached(100, play).min() > 0
