"""Meta-RL tasks for Gymnasium: a hidden task is drawn at each trial and the agent has to find it out.

Importing the package registers the tasks; it needs numpy and gymnasium, nothing else. Cheetah and ant need
mujoco where one is made (``pip install 'sb3-laplace[mujoco]'``).

- ``sb3_laplace/FourierRegression-v0``: predict a random function at the points that it is asked for.
- ``sb3_laplace/DirichletBandit-v0``: pull the arms of a bandit whose success probabilities are hidden.
- ``sb3_laplace/GridNavigation-v0``: find a hidden goal on a grid, then return to it again and again.

- ``sb3_laplace/PointRobot-v0``: find a hidden goal on a semicircle.
- ``sb3_laplace/HalfCheetahVel-v0``, ``sb3_laplace/HalfCheetahDir-v0``: run at a hidden velocity, or in a hidden
  direction.
- ``sb3_laplace/AntDir-v0``: run in a hidden direction, on four legs.

The last four are continuous control, in trials of several episodes: their ids make a `Trial` or a `VectorTrial` and
take its arguments beside the task's. Their classes (`PointRobotEnv`, `PointRobotVectorEnv`, ...) are the tasks
without trials.

``gymnasium.make`` gives one environment, ``gymnasium.make_vec`` a batch that steps all its copies in a
few numpy calls. `Trial` and `VectorTrial` make meta-tasks of any other environment.
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

_ENTRY_POINTS = {
    "FourierRegression": ("tasks.fourier_regression:FourierRegressionEnv", "FourierRegressionVectorEnv"),
    "DirichletBandit": ("tasks.dirichlet_bandit:DirichletBanditEnv", "DirichletBanditVectorEnv"),
    "GridNavigation": ("tasks.grid_navigation:GridNavigationEnv", "GridNavigationVectorEnv"),
    "PointRobot": ("meta_tasks:point_robot", "point_robot_vector"),
    "HalfCheetahVel": ("meta_tasks:half_cheetah_vel", "half_cheetah_vel_vector"),
    "HalfCheetahDir": ("meta_tasks:half_cheetah_dir", "half_cheetah_dir_vector"),
    "AntDir": ("meta_tasks:ant_dir", "ant_dir_vector"),
}
for _name, (_single, _batched) in _ENTRY_POINTS.items():
    # Gymnasium warns when an id is registered again, which a reload of this module would do.
    if f"sb3_laplace/{_name}-v0" not in registry:
        register(
            id=f"sb3_laplace/{_name}-v0",
            entry_point=f"sb3_laplace_envs.{_single}",
            vector_entry_point=f"sb3_laplace_envs.{_single.partition(':')[0]}:{_batched}",
        )
