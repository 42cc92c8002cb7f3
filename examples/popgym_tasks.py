"""Two of popgym's memory tasks with ids that studies can name (pip install popgym).

A trial is one episode: the `Trial` is there to show the agent its last action and reward, without which no bandit can
be learned. examples/popgym_study.yml compares memories on them:

PYTHONPATH=examples sb3-laplace study run examples/popgym_study.yml --workers 2
"""

import gymnasium as gym
import popgym  # noqa: F401  (registers its tasks)

from sb3_laplace_envs import Trial

#: Names of popgym's tasks
TASKS = ("RepeatPreviousEasy", "MultiarmedBanditEasy")


def make(task: str) -> gym.Env:
    """One episode of a task as a trial."""
    # Its checker warns of infos that are shared between steps, which popgym's are
    return Trial(gym.make(f"popgym-{task}-v0", disable_env_checker=True), n_episodes=1)


for _task in TASKS:
    gym.register(f"popgym_trials/{_task}-v0", entry_point="popgym_tasks:make", kwargs={"task": _task})
