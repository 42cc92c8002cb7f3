"""The grid's oracle: the published optimum, the search against dynamic programming, the posterior."""

import itertools

import numpy as np
import pytest

from sb3_laplace_envs import GridNavigationVectorEnv
from sb3_laplace_envs.oracles import BayesOptimalNavigation
from sb3_laplace_envs.oracles.grid_navigation import best_exploration
from sb3_laplace_envs.tasks.grid_navigation import MOVES


def goals_reached(trial_length, play=None):
    """Goals that the grid player reaches in a trial, for each of the 24 goal cells."""
    cells = np.array(list(itertools.product(range(5), range(5)))[1:])
    env = GridNavigationVectorEnv(24, trial_length)
    oracle = BayesOptimalNavigation(env)
    observations, _ = env.reset(options={"task": cells})
    goals = np.zeros(24)
    for step in range(trial_length):
        oracle.observe(observations)
        actions = oracle.act()
        if play is not None and step < play.shape[0]:
            actions = play[step]
        observations, rewards, *_ = env.step(actions)
        goals += rewards
    return goals


class TestGridPlayer:
    @pytest.mark.parametrize(("trial_length", "expected"), [(60, 17.21), (100, 30.17), (200, 62.63)])
    def test_reaches_the_published_optimum(self, trial_length, expected):
        assert goals_reached(trial_length).mean() == pytest.approx(expected, abs=0.0051)

    @pytest.mark.parametrize("trial_length", [5, 9, 12, 40])
    @pytest.mark.parametrize("max_attempt_steps", [4, 5, 15])
    def test_search_finds_the_optimum(self, max_attempt_steps, trial_length):
        """On a grid of 3 x 3, by dynamic programming over all pairs of a cell and a set of visited cells."""
        states = {(0, frozenset([0])): 0}

        def enter(cell, action):
            row, column = np.clip(np.add(divmod(cell, 3), MOVES[action]), 0, 2)
            return int(3 * row + column)

        def gain(cell, visited, step):
            return 0 if cell in visited else 1 + (trial_length - step) // sum(divmod(cell, 3))

        for step in range(1, min(trial_length, 20) + 1):
            following = {}
            for (cell, visited), total in states.items():
                for action in range(4):
                    entered = enter(cell, action)
                    stands = 0 if step % max_attempt_steps == 0 else entered
                    state = stands, visited | {entered}
                    worth = total + gain(entered, visited, step)
                    following[state] = max(following.get(state, 0), worth)
            states = following

        cell, visited, found = 0, {0}, 0
        for step, action in enumerate(best_exploration(3, max_attempt_steps, trial_length), start=1):
            cell = enter(cell, action)
            found += gain(cell, visited, step)
            visited.add(cell)
            cell = 0 if step % max_attempt_steps == 0 else cell
        assert found == max(states.values())

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
        """After moves that were not its own it still finds every goal, and returns to it on the shortest path."""
        play = np.random.default_rng(0).integers(4, size=(12, 24))
        goals = goals_reached(100, play)
        assert goals.min() > 0
        assert goals_reached(100).mean() - 8 < goals.mean() < goals_reached(100).mean()
