"""Make plain RecurrentPPO agents Bayesian after the fact, and measure what sampling the posterior costs them.

python examples/posthoc.py train [--out runs/posthoc]     # sb3-contrib alone, some minutes
python examples/posthoc.py convert [--out runs/posthoc]   # a fresh process: converts, plays, calibrates
"""

import argparse
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.env_util import make_vec_env as sb3_make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from sb3_laplace import LaplaceRecurrentPPO, calibrate_prior_std, make_vec_env

AGENTS: dict[str, dict[str, Any]] = {
    "bandit": {
        "timesteps": 600_000,
        "n_envs": 64,
        "arguments": {"n_steps": 50, "batch_size": 400, "n_epochs": 4, "gamma": 0.9, "learning_rate": 1e-3},
        "ent_coef": 0.01,
        "policy_kwargs": {
            "lstm_hidden_size": 128,
            "shared_lstm": True,
            "enable_critic_lstm": False,
            "net_arch": [64],
        },
    },
    "cartpole": {
        "timesteps": 100_000,
        "n_envs": 8,
        "arguments": {"n_steps": 256, "batch_size": 256, "n_epochs": 10, "gamma": 0.98, "learning_rate": 1e-3},
        "ent_coef": 0.0,
        "policy_kwargs": {"lstm_hidden_size": 64, "net_arch": [64]},
    },
}
PRIOR_STDS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


class WithoutVelocities(gym.ObservationWrapper):
    """CartPole that shows position and angle only: the agent has to remember to know the velocities."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        space = env.observation_space
        self.observation_space = gym.spaces.Box(space.low[[0, 2]], space.high[[0, 2]], dtype=space.dtype.type)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return observation[[0, 2]]


def make_env(agent: str, n_envs: int, seed: int) -> VecEnv:
    """The environment of an agent."""
    if agent == "bandit":
        return make_vec_env("sb3_laplace/DirichletBandit-v0", n_envs, seed)
    return sb3_make_vec_env("CartPole-v1", n_envs, seed, wrapper_class=WithoutVelocities)


def train(agent: str, out: Path, timesteps: int | None) -> None:
    """Train a plain RecurrentPPO agent and save it."""
    settings = AGENTS[agent]
    model = RecurrentPPO(
        "MlpLstmPolicy",
        make_env(agent, settings["n_envs"], seed=0),
        seed=0,
        device="cpu",
        ent_coef=settings["ent_coef"],
        policy_kwargs=settings["policy_kwargs"],
        **settings["arguments"],
    )
    model.learn(timesteps or settings["timesteps"])
    model.save(out / agent)
    print(f"{agent}: trained for {model.num_timesteps} steps, saved to {out / agent}.zip")


def largest_difference(ours: LaplaceRecurrentPPO, theirs: RecurrentPPO, env: VecEnv, n_steps: int) -> int:
    """How many deterministic actions differ while both agents see the same episodes."""
    obs, start, different = env.reset(), np.ones(env.num_envs, dtype=bool), 0
    our_state = their_state = None
    for _ in range(n_steps):
        our_actions, our_state = ours.predict(obs, our_state, start, deterministic=True)
        actions, their_state = theirs.predict(obs, their_state, start, deterministic=True)
        different += int((our_actions != actions).sum())
        obs, _, start, _ = env.step(actions)
    return different


def convert(agent: str, out: Path, n_trials: int) -> None:
    """Convert a saved agent, compare it with what it was, and print what sampling costs it."""
    env = make_env(agent, 64, seed=1)
    theirs = RecurrentPPO.load(out / agent, device="cpu")
    ours = LaplaceRecurrentPPO.from_recurrent_ppo(out / agent, device="cpu")
    print(f"{agent}: {largest_difference(ours, theirs, env, 500)} of {500 * env.num_envs} actions differ\n")
    header = "".join(f"{value:>9}" for value in PRIOR_STDS)
    print(f"| mean return, by prior_std (unsampled)\n| K   {header}")
    for n_samples in (1, 4):
        result = calibrate_prior_std(ours, env, PRIOR_STDS, n_trials, n_samples)
        cells = "".join(f"{score:>9.2f}" for score in result.scores)
        print(f"| {n_samples:<4}{cells}   unsampled {result.unsampled:.2f}, chosen {result.prior_std}")
    likelihood = calibrate_prior_std(ours, env, PRIOR_STDS, n_trials, 1, criterion="likelihood")
    cells = "".join(f"{score:>9.3f}" for score in likelihood.scores)
    print(f"| log-likelihood of the unsampled agent's actions, nats per step, K = 1\n|     {cells}")
    print(f"| unsampled {likelihood.unsampled:.3f}, chosen {likelihood.prior_std}\n")


def main(arguments: list[str] | None = None) -> None:
    """Train, or convert and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=["train", "convert"])
    parser.add_argument("--out", type=Path, default=Path("runs/posthoc"))
    parser.add_argument("--agents", nargs="+", choices=list(AGENTS), default=list(AGENTS))
    parser.add_argument("--timesteps", type=int, help="of training, for every agent")
    parser.add_argument("--trials", type=int, default=512, help="held-out trials of each measurement")
    args = parser.parse_args(arguments)
    for agent in args.agents:
        if args.stage == "train":
            train(agent, args.out, args.timesteps)
        else:
            convert(agent, args.out, args.trials)


if __name__ == "__main__":
    main()
