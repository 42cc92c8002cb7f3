"""Meta-RL tasks for Gymnasium: a hidden task is drawn at each trial and the agent has to find it out.

Importing the package registers the tasks; it needs numpy and gymnasium, nothing else. Cheetah and ant need
mujoco where one is made (``pip install 'sb3-laplace[mujoco]'``).

- ``sb3_laplace/FourierRegression-v0``: predict a random function at the points that it is asked for.
- ``sb3_laplace/DirichletBandit-v0``: pull the arms of a bandit whose success probabilities are hidden.
- ``sb3_laplace/GridNavigation-v0``: find a hidden goal on a grid, then return to it again and again.

``gymnasium.make`` gives one environment, ``gymnasium.make_vec`` a batch that steps all its copies in a
few numpy calls. `Trial` and `VectorTrial` make meta-tasks of any other environment.

Continuous control, the classes of single environments and of batches (``...VectorEnv``):

- `PointRobotEnv`: find a hidden goal on a semicircle.
- `HalfCheetahVelEnv`, `HalfCheetahDirEnv`: run at a hidden velocity, or in a hidden direction.
- `AntDirEnv`: run in a hidden direction, on four legs.
"""

from gymnasium.envs.registration import register, registry

from sb3_laplace_envs.tasks.ant_dir import AntDirEnv, AntDirVectorEnv
from sb3_laplace_envs.tasks.dirichlet_bandit import DirichletBanditEnv, DirichletBanditVectorEnv
from sb3_laplace_envs.tasks.episodes import EpisodeEnv, EpisodeVectorEnv
from sb3_laplace_envs.tasks.fourier_regression import (
    TEST_QUERY_INTERVALS,
    FourierRegressionEnv,
    FourierRegressionVectorEnv,
    fourier_basis,
)
from sb3_laplace_envs.tasks.grid_navigation import GridNavigationEnv, GridNavigationVectorEnv
from sb3_laplace_envs.tasks.half_cheetah import (
    HalfCheetahDirEnv,
    HalfCheetahDirVectorEnv,
    HalfCheetahVelEnv,
    HalfCheetahVelVectorEnv,
)
from sb3_laplace_envs.tasks.point_robot import PointRobotEnv, PointRobotVectorEnv
from sb3_laplace_envs.tasks.trials import TrialEnv, TrialVectorEnv
from sb3_laplace_envs.wrappers import Trial, VectorTrial

__all__ = [
    "TEST_QUERY_INTERVALS",
    "AntDirEnv",
    "AntDirVectorEnv",
    "DirichletBanditEnv",
    "DirichletBanditVectorEnv",
    "EpisodeEnv",
    "EpisodeVectorEnv",
    "FourierRegressionEnv",
    "FourierRegressionVectorEnv",
    "GridNavigationEnv",
    "GridNavigationVectorEnv",
    "HalfCheetahDirEnv",
    "HalfCheetahDirVectorEnv",
    "HalfCheetahVelEnv",
    "HalfCheetahVelVectorEnv",
    "PointRobotEnv",
    "PointRobotVectorEnv",
    "Trial",
    "TrialEnv",
    "TrialVectorEnv",
    "VectorTrial",
    "fourier_basis",
]

for _name, _module in (
    ("FourierRegression", "fourier_regression"),
    ("DirichletBandit", "dirichlet_bandit"),
    ("GridNavigation", "grid_navigation"),
):
    # Gymnasium warns when an id is registered again, which a reload of this module would do.
    if f"sb3_laplace/{_name}-v0" not in registry:
        register(
            id=f"sb3_laplace/{_name}-v0",
            entry_point=f"sb3_laplace_envs.tasks.{_module}:{_name}Env",
            vector_entry_point=f"sb3_laplace_envs.tasks.{_module}:{_name}VectorEnv",
        )
