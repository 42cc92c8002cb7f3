"""What plays or predicts a task optimally or well: to hold trained agents against, in return and in belief.

An oracle knows how tasks are drawn, and of a trial it sees what an agent sees: the environment's observations.

| oracle | plays | belief |
| --- | --- | --- |
| `BetaThompsonSampling` | the bandit, by Thompson sampling with a Beta(1, 1) prior on each arm | |
| `DirichletThompsonSampling` | the bandit, by Thompson sampling with the exact prior | |
| `DirichletIndexPolicy` | the bandit, within 0.1 of the least regret in 50 pulls; or greedily | exact |
| `BayesOptimalNavigation` | the grid, with the most goals that can be expected | exact |
| `BayesianLinearRegression` | the regression, within a few percent of the least error | close to exact |

Of PointRobot `best_point_robot_return` is the return of a player who is told the goal.
"""

from sb3_laplace_envs.oracles.base import Belief, Oracle
from sb3_laplace_envs.oracles.dirichlet_bandit import (
    BetaThompsonSampling,
    DirichletIndexPolicy,
    DirichletThompsonSampling,
)
from sb3_laplace_envs.oracles.dirichlet_posterior import DirichletPosterior
from sb3_laplace_envs.oracles.grid_navigation import BayesOptimalNavigation
from sb3_laplace_envs.oracles.linear_regression import (
    BayesianLinearRegression,
    bayesian_linear_regression,
    coefficient_covariance,
)
from sb3_laplace_envs.oracles.point_robot import best_point_robot_return

__all__ = [
    "BayesOptimalNavigation",
    "BayesianLinearRegression",
    "Belief",
    "BetaThompsonSampling",
    "DirichletIndexPolicy",
    "DirichletPosterior",
    "DirichletThompsonSampling",
    "Oracle",
    "bayesian_linear_regression",
    "best_point_robot_return",
    "coefficient_covariance",
]
