"""Each task's dynamics, and its distributions against theory (values of independent programs).

Seeds are fixed, so the tests cannot be flaky; a mean must lie within 4 standard errors of theory.
"""

import itertools

import gymnasium as gym
import numpy as np
import pytest

from sb3_laplace_envs import TEST_QUERY_INTERVALS, fourier_basis


def make_vec(task, num_envs, seed=0, **kwargs):
    """A batch, reset."""
    envs = gym.make_vec(f"sb3_laplace/{task}-v0", num_envs=num_envs, **kwargs)
    envs.reset(seed=seed)
    envs.action_space.seed(seed)
    return envs


def assert_mean(samples, expected, slack=0.0):
    """The mean of samples lies within 4 standard errors (and the expectation's own error) of the expectation."""
    error = np.std(samples, ddof=1) / np.sqrt(len(samples))
    assert abs(np.mean(samples) - expected) < 4 * error + slack, (np.mean(samples), expected, error)


class TestDirichletBandit:
    # Expectations of max p to four digits; half of the last is their rounding.
    @pytest.mark.parametrize(("concentration", "best"), [(0.2, 0.7039), (0.3, 0.6372)])
    def test_probabilities(self, concentration, best):
        tasks = make_vec("DirichletBandit", 40_000, trial_length=1, concentration=concentration).unwrapped.task
        np.testing.assert_allclose(tasks.sum(axis=1), 1.0)
        assert_mean(tasks.max(axis=1), best, slack=5e-5)
        # Var p_a = (1/n)(1 - 1/n) / (n concentration + 1)
        for arm in tasks.T:
            assert_mean(arm, 0.2)
            assert_mean((arm - 0.2) ** 2, 0.16 / (5 * concentration + 1))

    # The published values are of 8000 tasks: their standard error, 50 sd(max p) / sqrt(8000), is 0.12.
    @pytest.mark.parametrize(("concentration", "expected"), [(0.2, 25.23), (0.3, 22.02)])
    def test_regret_of_uniform_pulls(self, concentration, expected):
        envs = make_vec("DirichletBandit", 8000, seed=1, concentration=concentration)
        regret = sum(envs.step(envs.action_space.sample())[4]["regret"] for _ in range(50))
        assert_mean(regret, expected, slack=4 * 0.12)

    def test_rewards_match_the_probability_of_the_arm(self):
        p = np.array([0.0, 0.1, 0.5, 0.9, 1.0])
        envs = make_vec("DirichletBandit", 2000)
        envs.reset(seed=2, options={"task": p})
        for arm in range(5):
            rewards = np.concatenate([envs.step(np.full(2000, arm))[1] for _ in range(10)])
            assert set(rewards) <= {0.0, 1.0}
            if p[arm] in (0.0, 1.0):
                assert (rewards == p[arm]).all()
            else:
                assert_mean(rewards, p[arm])

    def test_rewards_are_independent_over_steps_and_environments(self):
        envs = make_vec("DirichletBandit", 3000, trial_length=10)
        envs.reset(seed=3, options={"task": np.full(5, 0.5)})
        pulls = np.array([envs.step(np.zeros(3000, int))[1] for _ in range(20)]) - 0.5  # two trials
        for lag in (1, 10):
            assert_mean((pulls[lag:] * pulls[:-lag]).mean(axis=0), 0.0)
        assert_mean((pulls[:, 1:] * pulls[:, :-1]).mean(axis=1), 0.0)

    def test_regret_and_arguments(self):
        envs = make_vec("DirichletBandit", 4, n_arms=3)
        task = envs.unwrapped.task
        assert task.shape == (4, 3)
        assert envs.single_action_space == gym.spaces.Discrete(3)
        assert envs.single_observation_space == gym.spaces.Box(0.0, 1.0, (5,))
        actions = np.array([0, 1, 2, 0])
        regret = envs.step(actions)[4]["regret"]
        np.testing.assert_allclose(regret, task.max(axis=1) - task[np.arange(4), actions])


class TestGridNavigation:
    @staticmethod
    def expected_random_goals(trial_length, size=5, max_attempt_steps=15):
        """The mean number of goals that uniform moves reach: the exact Markov chain, goal by goal."""
        total = 0.0
        for goal in range(1, size**2):
            occupancy = np.zeros((max_attempt_steps, size**2))  # [steps of the attempt, cell]
            occupancy[0, 0] = 1.0
            for _ in range(trial_length):
                after = np.zeros_like(occupancy)
                for steps, cell in zip(*np.nonzero(occupancy), strict=True):
                    row, column = divmod(cell, size)
                    for d_row, d_column in ((-1, 0), (1, 0), (0, -1), (0, 1)):
                        r, c = min(max(row + d_row, 0), size - 1), min(max(column + d_column, 0), size - 1)
                        mass = occupancy[steps, cell] / 4
                        if r * size + c == goal:
                            total += mass
                            after[0, 0] += mass
                        elif steps + 1 == max_attempt_steps:
                            after[0, 0] += mass
                        else:
                            after[steps + 1, r * size + c] += mass
                occupancy = after
        return total / (size**2 - 1)

    def test_the_chain_gives_the_published_value(self):
        assert self.expected_random_goals(60) == pytest.approx(1.61, abs=0.005)

    @pytest.mark.parametrize(("trial_length", "expected"), [(60, 1.61), (100, 2.66), (200, 5.31)])
    def test_goals_of_uniform_moves(self, trial_length, expected):
        envs = make_vec("GridNavigation", 4000, trial_length=trial_length)
        goals = np.zeros(4000)
        for _ in range(trial_length):
            _, rewards, _, _, infos = envs.step(envs.action_space.sample())
            np.testing.assert_array_equal(rewards, infos["goals_reached"])
            goals += rewards
        assert_mean(goals, expected, slack=0.005)

    def test_goals_are_uniform(self):
        goals = make_vec("GridNavigation", 24_000, trial_length=1).unwrapped.task
        counts = np.bincount(goals @ (5, 1), minlength=25)
        assert counts[0] == 0
        # Chi-square with 23 degrees of freedom: mean 23, standard deviation 6.8.
        assert ((counts[1:] - 1000) ** 2 / 1000).sum() < 23 + 4 * 6.8

    @pytest.mark.parametrize(("trial_length", "expected"), [(60, 19.42), (100, 32.29), (200, 64.75)])
    def test_goals_on_the_shortest_paths(self, trial_length, expected):
        """Who knows the goal walks row + column steps, is put back and walks again: the published means."""
        cells = np.array(list(itertools.product(range(5), range(5)))[1:])
        envs = make_vec("GridNavigation", 24, trial_length=trial_length)
        observations, _ = envs.reset(options={"task": cells})
        goals, excess = np.zeros(24), np.zeros(24)
        for _ in range(trial_length):
            row, _ = np.divmod(observations[:, :25].argmax(axis=1), 5)
            observations, _, _, _, infos = envs.step(np.where(row < cells[:, 0], 1, 3))
            goals += infos["goals_reached"]
            excess += infos["excess_steps"]
        np.testing.assert_array_equal(goals, trial_length // cells.sum(axis=1))
        assert goals.mean() == pytest.approx(expected, abs=0.005)
        assert not excess.any()

    @staticmethod
    def walk(moves, goal, **kwargs):
        """Cells, rewards and metrics of one environment for a string of moves."""
        env = gym.make("sb3_laplace/GridNavigation-v0", **kwargs).unwrapped
        env.reset(seed=0, options={"task": goal})
        steps = [env.step("udlr".index(move)) for move in moves]
        cells = [tuple(int(i) for i in divmod(step[0][: env.batch.size**2].argmax(), env.batch.size)) for step in steps]
        return cells, [step[1] for step in steps], [step[4] for step in steps]

    def test_moves_and_walls(self):
        cells, rewards, _ = self.walk("uldrrudlrrrr", (4, 4))
        assert cells[:6] == [(0, 0), (0, 0), (1, 0), (1, 1), (1, 2), (0, 2)]
        assert cells[6:] == [(1, 2), (1, 1), (1, 2), (1, 3), (1, 4), (1, 4)]
        assert not any(rewards)

    @pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint64])
    def test_integers_of_any_kind_are_actions(self, dtype):
        envs = make_vec("GridNavigation", 2, size=20, max_attempt_steps=50)
        observations = envs.step(np.array([1, 3], dtype=dtype))[0]
        assert [list(np.flatnonzero(row)) for row in observations] == [[20, 401], [1, 403]]

    def test_attempt_ends_at_the_goal(self):
        cells, rewards, infos = self.walk("rlrdrd", (1, 1))
        assert cells == [(0, 1), (0, 0), (0, 1), (0, 0), (0, 1), (0, 0)]
        assert rewards == [0, 0, 0, 1, 0, 1]
        assert [info["goals_reached"] for info in infos] == rewards
        assert [info["excess_steps"] for info in infos] == [0, 0, 0, 2, 0, 0]

    def test_attempt_ends_after_its_last_step(self):
        cells, rewards, infos = self.walk("rrrdddrd", (2, 2), size=3, max_attempt_steps=4)
        assert cells[:4] == [(0, 1), (0, 2), (0, 2), (0, 0)]  # put back after the fourth step
        assert cells[4:] == [(1, 0), (2, 0), (2, 1), (0, 0)]
        assert not any(rewards)

        # The goal on the last step of the attempt counts; attempts that failed are no excess.
        _, rewards, infos = self.walk("uuuurrdd", (2, 2), size=3, max_attempt_steps=4)
        assert rewards == [0] * 7 + [1]
        assert infos[-1]["excess_steps"] == 0

    def test_render(self):
        env = gym.make("sb3_laplace/GridNavigation-v0", size=3, render_mode="ansi").unwrapped
        env.reset(options={"task": (2, 1)})
        assert env.render() == "[S] .  . \n .  .  . \n .  G  . \n"

        envs = make_vec("GridNavigation", 2, render_mode="rgb_array")
        envs.reset(options={"task": [(0, 2), (4, 4)]})
        envs.step(np.array([3, 1]))
        frames = envs.render()
        assert isinstance(frames, tuple)
        assert [(frame.shape, frame.dtype) for frame in frames] == [((161, 161, 3), np.uint8)] * 2
        for frame, goal, agent in zip(frames, [(0, 2), (4, 4)], [(0, 1), (1, 0)], strict=True):
            # The colour at each cell's centre and near its corner: the disc leaves the corner free.
            centres, corners = frame[16::32, 16::32], frame[3::32, 3::32][:5, :5]
            looks = {
                name: (tuple(centres[cell]), tuple(corners[cell]))
                for name, cell in {"start": (0, 0), "goal": goal, "agent": agent, "empty": (3, 1)}.items()
            }
            assert len({centre for centre, _ in looks.values()}) == 4
            assert looks["agent"][1] == looks["empty"][1] == (255, 255, 255)

    def test_render_without_a_mode(self):
        env = gym.make("sb3_laplace/GridNavigation-v0").unwrapped
        env.reset()
        with pytest.warns(UserWarning, match="render_mode"):
            assert env.render() is None


class TestFourierRegression:
    @staticmethod
    def by_the_formula(task, x):
        """y(x) as DESIGN writes it, for one task [a_0..a_3, phi_1..phi_3, s]."""
        a, phi, s = task[:4], task[4:7], task[7]
        scaled = [a[j] * (j + 1) / 3 for j in range(4)]
        cosines = [scaled[i] * np.cos((2 * np.pi * i * (x - s) - phi[i - 1]) / 2) for i in range(1, 4)]
        return scaled[0] / 2 + sum(cosines)

    def test_evaluate_is_the_formula(self):
        envs = make_vec("FourierRegression", 5).unwrapped
        x = np.linspace(-1, 1, 11)
        expected = [self.by_the_formula(task, x) for task in envs.task]
        np.testing.assert_allclose(envs.evaluate(x), expected, atol=1e-12)
        np.testing.assert_allclose(envs.evaluate(np.tile(x, (5, 1))), expected, atol=1e-12)
        np.testing.assert_allclose(fourier_basis(x) @ envs.coefficients[2], expected[2], atol=1e-12)

        single = gym.make("sb3_laplace/FourierRegression-v0").unwrapped
        single.reset(seed=2)
        np.testing.assert_allclose(single.evaluate(x), expected[2], atol=1e-12)
        np.testing.assert_array_equal(single.coefficients, envs.coefficients[2])

    def test_distribution_of_tasks(self):
        envs = make_vec("FourierRegression", 40_000, trial_length=1).unwrapped
        for column, (low, high) in zip(envs.task.T, [(-1, 1)] * 4 + [(0, np.pi)] * 4, strict=True):
            assert low <= column.min() < column.max() <= high
            assert_mean(column, (low + high) / 2)
            assert_mean((column - (low + high) / 2) ** 2, (high - low) ** 2 / 12)

    def test_second_moments_of_the_coefficients(self):
        """Closed form: term i has the angle pi i s + phi_i / 2. The published values are rounded or a sample's."""
        published = [0.00925, 0.07319, 0.07496, 0.16341, 0.17007, 0.29044, 0.30208]
        expected = [1 / 3 / 36]
        for i in (1, 2, 3):
            power = ((i + 1) / 3) ** 2 / 3
            # E cos(2 pi i s + phi) over s ~ U(0, pi) and phi ~ U(0, pi)
            cosine = (np.exp(2j * np.pi**2 * i) - 1) / (2j * np.pi**2 * i) * (np.exp(1j * np.pi) - 1) / (1j * np.pi)
            expected += [power * (1 + cosine.real) / 2, power * (1 - cosine.real) / 2]
        np.testing.assert_allclose(expected, published, rtol=0.002)

        coefficients = make_vec("FourierRegression", 60_000, seed=5, trial_length=1).unwrapped.coefficients
        for column, moment in zip(coefficients.T, expected, strict=True):
            assert_mean(column, 0.0)
            assert_mean(column**2, moment)

    def test_step(self):
        envs = make_vec("FourierRegression", 6)
        tasks = envs.unwrapped.task
        observations, _ = envs.reset(seed=0)
        assert not observations[:, :2].any()
        for _ in range(49):
            query = observations[:, 2]
            actions = envs.action_space.sample()
            observations, rewards, _, _, infos = envs.step(actions)
            y = np.array([self.by_the_formula(task, x) for task, x in zip(tasks, query, strict=True)])
            np.testing.assert_allclose(infos["target"], y, atol=1e-5)  # the observed query is float32
            predictions = 19 / 6 * actions[:, 0].astype(np.float64)
            np.testing.assert_allclose(rewards, -((predictions - infos["target"]) ** 2), rtol=1e-12)
            np.testing.assert_array_equal(infos["squared_error"], -rewards)
            np.testing.assert_array_equal(observations[:, 0], query)
            np.testing.assert_allclose(observations[:, 1], infos["target"], rtol=1e-6)

    def test_seven_pairs_determine_the_function(self):
        env = gym.make("sb3_laplace/FourierRegression-v0").unwrapped
        env.reset(seed=3)
        pairs = np.array([env.step(np.zeros(1, np.float32))[0][:2] for _ in range(10)], dtype=np.float64)
        coefficients = np.linalg.lstsq(fourier_basis(pairs[:, 0]), pairs[:, 1], rcond=None)[0]
        np.testing.assert_allclose(coefficients, env.coefficients, atol=1e-4)

    def test_actions_reach_every_y(self):
        """The bound on |y| is attained, and the box goes exactly that far in either unit."""
        extreme = np.array([1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
        for kwargs, high in (({}, 1.0), ({"action_scale": 1.0}, 19 / 6), ({"action_scale": 0.5}, 19 / 3)):
            env = gym.make("sb3_laplace/FourierRegression-v0", **kwargs).unwrapped
            assert env.action_space == gym.spaces.Box(-high, high, (1,))
            for sign in (1, -1):
                env.reset(options={"task": sign * extreme})
                assert env.evaluate(np.zeros(1)) == pytest.approx(sign * 19 / 6)
                assert env.batch.action_scale * high == pytest.approx(19 / 6)
                # The worst prediction of an extreme function stays within the observation's bounds.
                observation, reward, *_, info = env.step(-sign * env.action_space.high)
                assert observation in env.observation_space
                assert reward == pytest.approx(-((info["target"] + sign * 19 / 6) ** 2))

    def test_queries(self):
        envs = make_vec("FourierRegression", 400)
        x = np.concatenate([envs.step(envs.action_space.sample())[0][:, 2] for _ in range(49)])
        assert -1 <= x.min() < x.max() <= 1
        assert_mean(x, 0.0)
        assert_mean(x**2, 1 / 3)

    def test_test_mode_queries(self):
        envs = make_vec("FourierRegression", 400, query_intervals=TEST_QUERY_INTERVALS)
        first = envs.reset(seed=1)[0][:, 2]
        x = np.concatenate([first] + [envs.step(envs.action_space.sample())[0][:, 2] for _ in range(49)])
        in_interval = [(low - 1e-7 <= x) & (x <= high + 1e-7) for low, high in TEST_QUERY_INTERVALS]
        assert np.any(in_interval, axis=0).all()
        for inside, share, (low, high) in zip(in_interval, (0.25, 0.5, 0.25), TEST_QUERY_INTERVALS, strict=True):
            assert_mean(inside, share)
            assert_mean(x[inside], (low + high) / 2)

    def test_arguments(self):
        envs = make_vec(
            "FourierRegression",
            500,
            n_frequencies=2,
            max_amplitude=2.0,
            max_shift=0.5,
            max_phase=0.1,
            query_intervals=[(1, 2)],
        ).unwrapped
        assert envs.coefficients.shape == (500, 5)
        assert envs.max_y == pytest.approx(2 * (1 / 6 + 2 / 3 + 1))
        np.testing.assert_allclose(np.abs(envs.task).max(axis=0), [2, 2, 2, 0.1, 0.1, 0.5], rtol=0.02)
        for _ in range(60):
            observations = envs.step(envs.action_space.sample())[0]
            assert observations in envs.observation_space
            assert ((observations[:, 2] >= 1) & (observations[:, 2] <= 2)).all()
