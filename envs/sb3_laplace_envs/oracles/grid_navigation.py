"""The Bayes-optimal player of GridNavigation."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sb3_laplace_envs.oracles.base import Belief, Oracle, check_env
from sb3_laplace_envs.tasks.batches import Observations
from sb3_laplace_envs.tasks.grid_navigation import MOVES, GridNavigationVectorEnv

# Walks kept at each step of the search. On the default grid 300 find the optimum, and a million find none better.
_BEAM_WIDTH = 3000


class BayesOptimalNavigation(Oracle):
    """Looks for the goal in the order that promises the most goals, and returns to it on the shortest path.

    Until the goal is found nothing is learned but where it is not. So the best order, `best_order`, is known from the
    start. The player always goes to the first of its cells that may hold the goal, which is the goal once it is found.
    Where it watches a trial that another plays, it goes on from there; this need not be the best way then.

    :param env: The grids
    """

    def __init__(self, env: GridNavigationVectorEnv) -> None:
        check_env(env, GridNavigationVectorEnv)
        super().__init__(env)
        self.size = env.size
        self._order = np.array(best_order(env.size, env.max_attempt_steps, env.trial_length))
        self._cell = np.zeros(self.num_envs, dtype=np.int64)
        self._possible = np.zeros((self.num_envs, self.size**2), dtype=np.bool_)
        self.reset()

    def posterior(self) -> Belief:
        """Mean and covariance of the goal cell, one-hot as in observations: the mean holds the cells' probabilities.

        :return: (num_envs, size^2) and (num_envs, size^2, size^2)
        """
        probabilities = self._possible / self._possible.sum(axis=1, keepdims=True)
        covariance = -probabilities[:, :, np.newaxis] * probabilities[:, np.newaxis]
        diagonal = np.arange(self.size**2)
        covariance[:, diagonal, diagonal] += probabilities
        return Belief(probabilities, covariance)

    def act(self) -> NDArray[np.int64]:
        """Choose the next moves, (num_envs,)."""
        target = self._order[self._possible[:, self._order].argmax(axis=1)]
        rows, columns = np.subtract(np.divmod(target, self.size), np.divmod(self._cell, self.size))
        return np.where(rows != 0, np.where(rows < 0, 0, 1), np.where(columns < 0, 2, 3))

    def _reset(self, indices: NDArray[np.int64]) -> None:
        self._cell[indices] = 0
        self._possible[indices] = True
        self._possible[indices, 0] = False  # the start

    def _update(self, observations: Observations, indices: NDArray[np.int64]) -> None:
        n_cells = self.size**2
        actions = observations[indices, n_cells:-2].argmax(axis=1)
        # Where the step led. The cell observed is another where the step ended an attempt: the start.
        entered = _move(self._cell[indices], actions, self.size)
        reached = observations[indices, -2] > 0.5
        self._possible[indices, entered] &= reached
        self._possible[indices[reached]] = np.arange(n_cells) == entered[reached, np.newaxis]
        self._cell[indices] = observations[indices, :n_cells].argmax(axis=1)


def _move(cells: NDArray[np.int64], actions: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Where moves lead, clipped at the walls; cells are numbers ``row * size + column``, (N,)."""
    position = np.stack(np.divmod(cells, size), axis=1) + MOVES[actions]
    return np.clip(position, 0, size - 1) @ np.array([size, 1])


class _Walks(NamedTuple):
    """Walks of equal length, one a row."""

    cell: NDArray[np.int64]
    """Where they are, (N,)"""
    visited: NDArray[np.bool_]
    """The cells that they entered, (N, n_cells)"""
    worth: NDArray[np.int64]
    """The goals that they promise so far, summed over all goal cells, (N,)"""
    parent: NDArray[np.int64]
    """The walk one step before, (N,)"""
    entered: NDArray[np.int64]
    """The cell that the last step entered, (N,). They are in another where it ended an attempt."""

    def take(self, rows: NDArray[np.int64]) -> _Walks:
        """Some of the walks."""
        return _Walks(self.cell[rows], self.visited[rows], self.worth[rows], self.parent[rows], self.entered[rows])


@lru_cache(maxsize=32)
def best_order(size: int, max_attempt_steps: int, trial_length: int) -> tuple[int, ...]:
    """Search for the order of looking for the goal that promises the most goals.

    A goal at distance d from the start that is found at step t of a trial of T steps is reached
    ``1 + (T - t) // d`` times, as the player then returns to it every d steps. A walk is worth the sum of these numbers
    over all cells, with t the step at which it first enters the cell.

    The search extends walks step by step. Of those that are in the same cell and have visited the same cells it keeps
    the best. Of all others it keeps those that promise the most if they went on to find a new cell at every step, the
    nearest to the start first.

    :param size: Cells along each side
    :param max_attempt_steps: Steps after which the player is put back at the start
    :param trial_length: Steps in the trial
    :return: All cells but the start, numbered ``row * size + column``, in the order in which the best walk enters them
        first. Those that a short trial leaves out come last.
    """
    n_cells = size**2
    distance = np.add.outer(np.arange(size), np.arange(size)).ravel()
    nearest = distance.argsort(kind="stable")[1:]
    # The worth of entering a cell first at a step, (steps, n_cells); 0 after the trial and for the start
    steps = np.arange(trial_length + n_cells + 1)[:, np.newaxis]
    worth = np.where(steps <= trial_length, 1 + (trial_length - steps) // np.maximum(distance, 1), 0)
    worth[:, 0] = 0
    # Sums of these tell sets of visited cells apart
    codes = np.random.default_rng(0).integers(2**63, size=n_cells)

    zero = np.zeros(1, dtype=np.int64)
    walks = _Walks(zero, np.arange(n_cells)[np.newaxis] == 0, zero, zero, zero)
    history = []
    for step in range(1, trial_length + 1):
        walks = _extend(walks, size, worth[step])
        if step % max_attempt_steps == 0:
            walks = walks._replace(cell=np.zeros_like(walks.cell))
        new = ~walks.visited[:, nearest]
        promise = walks.worth + np.where(new, worth[step + new.cumsum(axis=1), nearest], 0).sum(axis=1)
        # Sorted so that the best of equal walks comes first, which is the one that unique returns
        best_first = np.argsort(-promise, kind="stable")
        state = np.stack([walks.cell, (walks.visited * codes).sum(axis=1)], axis=1)[best_first]
        _, first = np.unique(state, axis=0, return_index=True)
        walks = walks.take(best_first[np.sort(first)[:_BEAM_WIDTH]])
        history.append(walks)
        if walks.visited[0].all():  # no other walk promises more than this one is worth
            break
    row, entered = int(walks.worth.argmax()), []
    for walks in reversed(history):
        entered.append(int(walks.entered[row]))
        row = int(walks.parent[row])
    order = dict.fromkeys([*reversed(entered), *nearest.tolist()])
    return tuple(cell for cell in order if cell != 0)


def _extend(walks: _Walks, size: int, worth: NDArray[np.int64]) -> _Walks:
    """Extend each walk by each of the moves, (4 N,) walks."""
    n, n_cells = walks.visited.shape
    parent, action = (part.ravel() for part in np.indices((n, len(MOVES))))
    cell = _move(walks.cell[parent], action, size)
    visited = walks.visited[parent]
    gain = np.where(visited[np.arange(len(cell)), cell], 0, worth[cell])
    visited |= cell[:, np.newaxis] == np.arange(n_cells)
    return _Walks(cell, visited, walks.worth[parent] + gain, parent, cell)
