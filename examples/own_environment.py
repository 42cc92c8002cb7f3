"""A cart-pole of hidden length and force as a meta-task: train an agent, and see whether it does better episode by
episode.

python examples/own_environment.py [--timesteps 200000] [--seed 0] [--reward-per-step]
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from stable_baselines3.common.utils import LinearSchedule

from sb3_laplace import GymnasiumVecEnv, LaplaceRecurrentPPO, PosteriorCallback, diagnose, posterior_trace
from sb3_laplace_envs import VectorTrial

N_EPISODES, EPISODE_STEPS = 3, 100


def sample_task(rng: np.random.Generator) -> np.ndarray:
    """Half the pole's length, and the force of a push, which may go the wrong way."""
    length, force = rng.uniform((0.25, 5.0), (2.0, 15.0))
    return np.array([length, force * rng.choice((-1, 1))])


def set_tasks(env: Any, tasks: np.ndarray) -> None:
    """Tell the batch the tasks of all its environments, shape (N, 2)."""
    cartpoles = env.unwrapped
    cartpoles.length, cartpoles.force_mag = tasks.T
    cartpoles.polemass_length = cartpoles.masspole * cartpoles.length


class CartPoles(CartPoleVectorEnv):
    """Gymnasium's batch of cart-poles, of which some can be reset alone."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        mask = (options or {}).get("reset_mask")
        if mask is None:
            return super().reset(seed=seed)
        self.state[:, mask] = self.np_random.uniform(-0.05, 0.05, (4, mask.sum()))
        self.steps[mask] = 0
        self.prev_done[mask] = False
        return self.state.T.astype(np.float32), {}


def make_env(n_envs: int, seed: int, reward_per_step: bool = False) -> GymnasiumVecEnv:
    """Trials of all cart-poles, stepped together.

    :param reward_per_step: 1 for every step, as in CartPole-v1. Within a trial falling costs nothing then, as the next
        episode goes on paying. Else -1 where the pole falls, and 0 everywhere else.
    """
    cartpoles = CartPoles(num_envs=n_envs, max_episode_steps=EPISODE_STEPS, sutton_barto_reward=not reward_per_step)
    trials = VectorTrial(cartpoles, N_EPISODES, sample_task=sample_task, set_task=set_tasks)
    env = GymnasiumVecEnv(trials)
    env.seed(seed)
    return env


def train(timesteps: int, seed: int, out: Path, reward_per_step: bool = False) -> LaplaceRecurrentPPO:
    """Train an agent whose rollouts are as long as a trial."""
    model = LaplaceRecurrentPPO(
        "LaplaceLstmPolicy",
        make_env(16, seed, reward_per_step),
        n_steps=N_EPISODES * EPISODE_STEPS,
        batch_size=1200,
        n_epochs=8,
        gamma=0.98,
        learning_rate=LinearSchedule(1e-3, 1e-4, 1.0),
        ent_coef=0.01,
        seed=seed,
        device="cpu",
        tensorboard_log=str(out),
        policy_kwargs={
            "lstm_hidden_size": 64,
            "shared_lstm": True,
            "enable_critic_lstm": False,
            "net_arch": [64],
        },
    )
    return model.learn(timesteps, callback=PosteriorCallback(figure_freq=0))


def main(arguments: list[str] | None = None) -> None:
    """Train, save, and print what later episodes are better by."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--timesteps", type=int, default=200_000)
    parser.add_argument("--trials", type=int, default=512, help="fresh trials to play after training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/own_environment"), help="folder of the model and the logs"
    )
    parser.add_argument("--reward-per-step", action="store_true", help="the reward of CartPole-v1")
    args = parser.parse_args(arguments)

    model = train(args.timesteps, args.seed, args.out, args.reward_per_step)
    model.save(args.out / "model.zip")
    trace = posterior_trace(model, make_env(min(128, args.trials), 10_000), args.trials, progress_bar=False)
    # Judged by the poles that fell, whatever the reward in training
    print("poles that fell, by episode:", -np.nanmean(trace.returns_by_episode, axis=0).round(2))
    print(diagnose(trace).table())


if __name__ == "__main__":
    main()
