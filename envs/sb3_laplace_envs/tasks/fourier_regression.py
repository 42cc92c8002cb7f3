"""Regression on random sums of cosines, one (point, prediction) pair a step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from sb3_laplace_envs.arguments import check_array, check_integer, check_positive
from sb3_laplace_envs.tasks.batches import Infos, Observations
from sb3_laplace_envs.tasks.trials import TrialEnv, TrialVectorEnv

#: The test mode's ``query_intervals``: three short pieces of the domain, the rest is never asked for.
TEST_QUERY_INTERVALS = ((-1.0, -0.8), (-0.2, 0.2), (0.8, 1.0))


def fourier_basis(x: NDArray[Any], n_frequencies: int = 3) -> NDArray[np.float64]:
    """The functions in which every task is linear: 1, then cos(pi i x), sin(pi i x) for i = 1, 2, ...

    :param x: Points of any shape
    :param n_frequencies: The highest i
    :return: The functions at the points, (\\*x.shape, 1 + 2 n_frequencies)
    """
    angles = np.pi * np.asarray(x, dtype=np.float64)[..., np.newaxis] * np.arange(1, n_frequencies + 1)
    basis = np.ones((*angles.shape[:-1], 1 + 2 * n_frequencies))
    basis[..., 1::2] = np.cos(angles)
    basis[..., 2::2] = np.sin(angles)
    return basis


class FourierRegressionVectorEnv(TrialVectorEnv):
    """A batch of regression tasks: `FourierRegressionEnv` describes the task and its arguments."""

    def __init__(
        self,
        num_envs: int = 1,
        trial_length: int = 50,
        n_frequencies: int = 3,
        max_amplitude: float = 1.0,
        max_shift: float = math.pi,
        max_phase: float = math.pi,
        query_intervals: Sequence[tuple[float, float]] = ((-1.0, 1.0),),
        action_scale: float | None = None,
    ) -> None:
        self.n_frequencies = check_integer("n_frequencies", n_frequencies, 1)
        self.max_amplitude = check_positive("max_amplitude", max_amplitude)
        self.max_shift = check_positive("max_shift", max_shift)
        self.max_phase = check_positive("max_phase", max_phase)
        self.query_intervals = self._check_intervals(query_intervals)
        # y is a sum of cosines and a constant. Cosine j has the amplitude a_j (j + 1) / 3, the constant half of that
        # for j = 0. All cosines are 1 at x = s when the phases are 0, so the bound on |y| below is reached.
        self._amplitude_weights = np.arange(1, self.n_frequencies + 2) / 3.0
        self._amplitude_weights[0] /= 2.0
        self.max_y = float(self.max_amplitude * self._amplitude_weights.sum())
        self.action_scale = self.max_y if action_scale is None else check_positive("action_scale", action_scale)

        max_action = self.max_y / self.action_scale
        action_space = spaces.Box(-max_action, max_action, (1,))
        max_error = self.max_y + self.action_scale * float(action_space.high[0])
        x_low, x_high, y_max = self.query_intervals[0, 0], self.query_intervals[-1, 1], self.max_y
        bounds = np.array([[x_low, x_high], [-y_max, y_max], [x_low, x_high]], dtype=np.float32)
        # On a trial's first step the last pair is (0, 0). Its bounds must hold that also where 0 is no possible x.
        bounds[0] = min(x_low, 0.0), max(x_high, 0.0)
        super().__init__(
            num_envs,
            trial_length,
            shown=spaces.Box(bounds[:, 0], bounds[:, 1]),
            action_space=action_space,
            reward_range=(-(max_error**2), 0.0),
            task_shape=(2 * self.n_frequencies + 2,),
            task_dtype=np.float64,
        )
        n_queries = self.trial_length + 1  # the last observation of a trial shows a next query too
        self._uniforms = np.zeros((self.num_envs, self._task.shape[1] + n_queries))
        self._queries = np.zeros((self.num_envs, n_queries))
        self._coefficients = np.zeros((self.num_envs, 1 + 2 * self.n_frequencies))
        self._last_pair = np.zeros((self.num_envs, 2))

    @staticmethod
    def _check_intervals(query_intervals: Sequence[tuple[float, float]]) -> NDArray[np.float64]:
        """Check the intervals and return them as an array (n_intervals, 2)."""
        n_intervals = max(1, len(query_intervals)) if isinstance(query_intervals, Sequence | np.ndarray) else 1
        intervals = check_array("query_intervals", query_intervals, "iuf", (n_intervals, 2)).astype(np.float64)
        if not np.isfinite(intervals).all() or (np.diff(intervals.ravel())[::2] <= 0.0).any():
            raise ValueError(f"query_intervals must be finite pairs (low, high) with low < high, got {query_intervals}")
        if (np.diff(intervals.ravel())[1::2] < 0.0).any():
            raise ValueError(f"query_intervals must be in ascending order and not overlap, got {query_intervals}")
        return intervals

    @property
    def coefficients(self) -> NDArray[np.float64]:
        """The tasks' coefficients in `fourier_basis`, (num_envs, 1 + 2 n_frequencies): a copy."""
        return self._coefficients.copy()

    @property
    def task_descriptor(self) -> NDArray[np.float64]:
        """What a belief about the tasks is read as: y is linear in the coefficients, not in phases and shift."""
        return self.coefficients

    def evaluate(self, x: NDArray[Any]) -> NDArray[np.float64]:
        """The present tasks' y at any points.

        :param x: Points, (num_envs, n_points), or (n_points,) for the same points in all environments
        :return: y, (num_envs, n_points)
        """
        return self._evaluate(self._coefficients, x)

    def _evaluate(self, coefficients: NDArray[np.float64], x: NDArray[Any]) -> NDArray[np.float64]:
        return (fourier_basis(x, self.n_frequencies) * coefficients[:, np.newaxis]).sum(axis=-1)

    def _draw_trials(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        for i in indices.tolist():
            self._seeded[i][0].random(out=self._uniforms[i])
        n = self.n_frequencies
        tasks, positions = np.split(self._uniforms[indices], [2 * n + 2], axis=1)
        tasks[:, : n + 1] = self.max_amplitude * (2.0 * tasks[:, : n + 1] - 1.0)
        tasks[:, n + 1 : -1] *= self.max_phase
        tasks[:, -1] *= self.max_shift
        # Lay the intervals end to end and draw a point of the whole. Then see in which interval it lies.
        low, high = self.query_intervals.T
        starts = np.concatenate([[0.0], np.cumsum(high - low)])
        positions *= starts[-1]
        interval = np.searchsorted(starts[1:-1], positions, side="right")
        self._queries[indices] = low[interval] + (positions - starts[interval])
        return tasks

    def _start_trials(self, indices: NDArray[np.int64]) -> None:
        n = self.n_frequencies
        amplitudes, phases, shift = np.split(self._task[indices], [n + 1, 2 * n + 1], axis=1)
        amplitudes = amplitudes * self._amplitude_weights
        # cos((2 pi i (x - s) - phi_i) / 2) = cos(pi i x - offset_i)
        offsets = np.pi * np.arange(1, n + 1) * shift + phases / 2.0
        self._coefficients[indices, 0] = amplitudes[:, 0]
        self._coefficients[indices, 1::2] = amplitudes[:, 1:] * np.cos(offsets)
        self._coefficients[indices, 2::2] = amplitudes[:, 1:] * np.sin(offsets)
        self._last_pair[indices] = 0.0

    def _apply(self, actions: NDArray[np.float32]) -> tuple[NDArray[np.float64], Infos]:
        query = self._queries[self._rows, self._elapsed]
        target = self._evaluate(self._coefficients, query[:, np.newaxis])[:, 0]
        squared_error = (self.action_scale * actions[:, 0].astype(np.float64) - target) ** 2
        self._last_pair[:, 0], self._last_pair[:, 1] = query, target
        return -squared_error, {"target": target, "squared_error": squared_error}

    def _show(self, shown: Observations) -> None:
        shown[:, :2] = self._last_pair
        shown[:, 2] = self._queries[self._rows, self._elapsed]

    def _check_task(self, task: NDArray[np.float64]) -> None:
        amplitudes = task[..., : self.n_frequencies + 1]
        if not np.isfinite(task).all() or (np.abs(amplitudes) > self.max_amplitude).any():
            raise ValueError(
                f"options['task'] must hold {self.n_frequencies + 1} amplitudes in -{self.max_amplitude} to "
                f"{self.max_amplitude}, {self.n_frequencies} phases and a shift, all finite, got {task}"
            )


class FourierRegressionEnv(TrialEnv):
    """
    ## Description

    A regression problem, one point a step. At the start of a trial a function is drawn,

        y(x) = a'_0 / 2 + sum over i = 1 ... n_frequencies of a'_i cos((2 pi i (x - s) - phi_i) / 2)

    with `a'_j = a_j (j + 1) / 3`, `a_j ~ U(-max_amplitude, max_amplitude)`, `s ~ U(0, max_shift)` and
    `phi_i ~ U(0, max_phase)`. At every step the agent is shown a query x, uniform on `query_intervals`, and
    predicts y there; the next observation shows it the true y. The function is linear in
    `[1, cos(pi x), sin(pi x), cos(2 pi x), ...]`, so seven pairs determine it.

    ## Action Space

    `Box` of shape `(1,)`: the prediction of y in units of `action_scale`, `prediction = action_scale * action`,
    with bounds that just cover every y that can be drawn, from -`max_y` to `max_y`, 19/6 for the default arguments.

    By default `action_scale` is `max_y` and the box is [-1, 1], the normalised box that Stable-Baselines3 wants
    actions to lie in (it clips them to the box). A Gaussian policy is then a distribution of `y / action_scale`.
    To get the likelihood of a target, evaluate its density at `target / action_scale`; for a density in the
    units of y, divide by `action_scale`. With `action_scale=1` actions are in the units of y and the box is
    [-max_y, max_y]; the checkers of Gymnasium and Stable-Baselines3 then recommend the normalised box.

    ## Observation Space

    `Box`, float32, of shape `(6,)`:

    | index | content | range |
    | --- | --- | --- |
    | 0 | last query x (0 on the first step of a trial) | -1 to 1 |
    | 1 | y at the last query (0 on the first step) | -max_y to max_y |
    | 2 | the query: x at which to predict y now | -1 to 1 |
    | 3 | previous action, as it was (0 on the first step) | that of an action |
    | 4 | previous reward (0 on the first step) | -(2 max_y)^2 to 0 |
    | 5 | 1 on the first step of a trial | 0 or 1 |

    ## Rewards

    `-(y - prediction)^2`, in the units of y.

    ## Episode End

    Truncation after `trial_length` steps.

    ## Info

    - `target`: y at the query that this step's action answered.
    - `squared_error`: `(y - prediction)^2`.

    Both are in the units of y, whatever `action_scale` is.

    ## Arguments

    ```python
    gymnasium.make("sb3_laplace/FourierRegression-v0", trial_length=50)
    gymnasium.make("sb3_laplace/FourierRegression-v0", query_intervals=TEST_QUERY_INTERVALS)
    gymnasium.make_vec("sb3_laplace/FourierRegression-v0", num_envs=256)
    ```

    - `trial_length`: queries in a trial.
    - `n_frequencies`: cosines in the sum. The 3 in `a'_j` stays, so another number adds or drops terms.
    - `max_amplitude`, `max_shift`, `max_phase`: the ranges of `a_j`, `s` and `phi_i`.
    - `query_intervals`: pairs (low, high), ascending and without overlap; queries are uniform on their union.
      `TEST_QUERY_INTERVALS` is the test mode: [-1, -0.8], [-0.2, 0.2] and [0.8, 1].
    - `action_scale`: the unit of actions, by default `max_y`.

    `reset(options={"task": task})` fixes the function until the next reset. A task is the array
    `[a_0, ..., a_n, phi_1, ..., phi_n, s]` of shape `(2 * n_frequencies + 2,)`, or a batch of them
    `(num_envs, ...)`. The amplitudes must lie in their range; the others only have to be finite. The
    attribute `task` holds the present trial's in the same shape, `task_descriptor` the coefficients of y in
    `[1, cos(pi x), sin(pi x), cos(2 pi x), ...]`, in which y is linear.

    ## Version History

    * v0: Initial version
    """

    vector_env_type = FourierRegressionVectorEnv
    batch: FourierRegressionVectorEnv

    @property
    def action_scale(self) -> float:
        """The unit of actions: the prediction of y is ``action_scale * action``."""
        return self.batch.action_scale

    @property
    def coefficients(self) -> NDArray[np.float64]:
        """The task's coefficients in `fourier_basis`, (1 + 2 n_frequencies,): a copy."""
        return self.batch.coefficients[0]

    @property
    def task_descriptor(self) -> NDArray[np.float64]:
        """What a belief about the task is read as: the coefficients."""
        return self.coefficients

    def evaluate(self, x: NDArray[Any]) -> NDArray[np.float64]:
        """The present task's y at any points.

        :param x: Points, (n_points,)
        :return: y, (n_points,)
        """
        return self.batch.evaluate(x)[0]
