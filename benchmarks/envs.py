"""Print how many environment steps a second each task makes, on one thread.

Run ``python benchmarks/envs.py``. Actions are drawn beforehand; everything else of `step` counts:
observations, infos and the autoreset at the end of each trial. The tasks call nothing of numpy that
starts threads.
"""

from __future__ import annotations

import time

import gymnasium as gym

import sb3_laplace_envs  # noqa: F401 (registers the tasks)

TASKS = ("FourierRegression", "DirichletBandit", "GridNavigation")


def steps_per_second(env: gym.vector.VectorEnv, seconds: float = 0.2, repeats: int = 3) -> float:
    """The best rate of several repeats, each of whole trials.

    :param env: The environment
    :param seconds: How long a repeat lasts at least
    :param repeats: How many
    """
    env.reset(seed=0)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(100)]
    best = 0.0
    for _ in range(repeats):
        n_steps, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            for action in actions:
                env.step(action)
            n_steps += len(actions) * env.num_envs
        best = max(best, n_steps / (time.perf_counter() - start))
    return best


def main() -> None:
    """Measure each task in batches of 1, 16 and 256."""
    print(f"{'env steps per second':24}{'batch of 1':>12}{'16':>12}{'256':>12}")
    for task in TASKS:
        rates = []
        for num_envs in (1, 16, 256):
            env = gym.make_vec(f"sb3_laplace/{task}-v0", num_envs=num_envs)
            rates.append(steps_per_second(env))
            env.close()
        print(f"{task:24}" + "".join(f"{rate:12,.0f}" for rate in rates))


if __name__ == "__main__":
    main()
