"""A Bernoulli bandit whose arms' success probabilities are one draw of a Dirichlet distribution."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from sb3_laplace_envs.arguments import check_integer, check_positive
from sb3_laplace_envs.tasks.batches import Infos, Observations
from sb3_laplace_envs.tasks.trials import TrialEnv, TrialVectorEnv


class DirichletBanditVectorEnv(TrialVectorEnv):
    """A batch of Dirichlet bandits: `DirichletBanditEnv` describes the task and its arguments."""

    def __init__(self, num_envs: int = 1, trial_length: int = 50, n_arms: int = 5, concentration: float = 0.2) -> None:
        self.n_arms = check_integer("n_arms", n_arms, 2)
        self.concentration = check_positive("concentration", concentration)
        super().__init__(
            num_envs,
            trial_length,
            shown=spaces.Box(0.0, 1.0, (0,)),
            action_space=spaces.Discrete(self.n_arms),
            reward_range=(0.0, 1.0),
            task_shape=(self.n_arms,),
            task_dtype=np.float64,
        )
        self._alpha = np.full(self.n_arms, self.concentration)
        self._best = np.zeros(self.num_envs)
        # A pull succeeds where its uniform number is below the arm's probability.
        self._uniforms = np.zeros((self.num_envs, self.trial_length))

    def _draw_trials(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        tasks = np.empty((len(indices), self.n_arms))
        for row, i in enumerate(indices.tolist()):
            generator, _ = self._seeded[i]
            tasks[row] = generator.dirichlet(self._alpha)
            generator.random(out=self._uniforms[i])
        return tasks

    def _start_trials(self, indices: NDArray[np.int64]) -> None:
        self._best[indices] = self._task[indices].max(axis=1)

    def _apply(self, actions: NDArray[np.int64]) -> tuple[NDArray[np.float64], Infos]:
        probabilities = self._task[self._rows, actions]
        rewards = self._uniforms[self._rows, self._elapsed] < probabilities
        return rewards.astype(np.float64), {"regret": self._best - probabilities}

    def _show(self, shown: Observations) -> None:
        """Show nothing. The previous action and reward, which every observation holds, are all a bandit tells."""

    def _check_task(self, task: NDArray[np.float64]) -> None:
        if not ((task >= 0.0) & (task <= 1.0)).all():  # False for NaN
            raise ValueError(f"options['task'] must hold probabilities in 0 to 1, got {task}")


class DirichletBanditEnv(TrialEnv):
    """
    ## Description

    A bandit of five arms. At the start of a trial the success probabilities of the arms are drawn,
    `p ~ Dirichlet(concentration * (1, ..., 1))`; they stay hidden and fixed until the trial's end. With a
    low concentration one arm is often far better than the others, so that it pays to search for it.

    ## Action Space

    `Discrete(n_arms)`: the arm to pull.

    ## Observation Space

    `Box`, float32, of shape `(n_arms + 2,)`:

    | index | content | range |
    | --- | --- | --- |
    | 0 ... n_arms - 1 | previous action, one-hot (zeros on the first step of a trial) | 0 or 1 |
    | n_arms | previous reward (0 on the first step) | 0 or 1 |
    | n_arms + 1 | 1 on the first step of a trial | 0 or 1 |

    ## Rewards

    1 with the probability of the arm pulled, else 0.

    ## Episode End

    Truncation after `trial_length` steps.

    ## Info

    `regret`: how far the probability of the arm pulled lies below that of the best arm, `max p - p_a`, for
    this one pull.

    ## Arguments

    ```python
    gymnasium.make("sb3_laplace/DirichletBandit-v0", trial_length=50, n_arms=5, concentration=0.2)
    gymnasium.make_vec("sb3_laplace/DirichletBandit-v0", num_envs=256)
    ```

    - `trial_length`: pulls in a trial.
    - `n_arms`: the number of arms, at least 2.
    - `concentration`: of the Dirichlet distribution; agents trained on 0.2 are tested on 0.3.

    `reset(options={"task": p})` fixes the probabilities until the next reset: `(n_arms,)`, or
    `(num_envs, n_arms)` for a batch. Each must lie in 0 to 1; they need not sum to one. The attribute
    `task` holds the probabilities of the present trial in the same shape.

    ## Version History

    * v0: Initial version
    """

    vector_env_type = DirichletBanditVectorEnv
