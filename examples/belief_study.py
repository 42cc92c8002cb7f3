"""What an agent's belief about the bandit owes to its size, cell, samples and losses, beside the exact belief.

python examples/belief_study.py train base --seed 0 [--out runs/belief]   # some minutes for each variant and seed
python examples/belief_study.py evaluate [--out runs/belief]              # all that were trained: a JSON file each
python examples/belief_study.py report [--out runs/belief]                # to docs/belief.md and the figures there
"""

import argparse
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import LinearSchedule

from sb3_laplace import LaplaceRecurrentPPO, make_vec_env

ENV_ID = "sb3_laplace/DirichletBandit-v0"
#: How an agent of each variant differs from the base: arguments of the algorithm, and keywords of the policy
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "base": ({}, {}),
    "long": ({}, {}),
    "hidden16": ({}, {"lstm_hidden_size": 16, "latent_dim": 16}),
    "hidden32": ({}, {"lstm_hidden_size": 32, "latent_dim": 32}),
    "hidden256": ({}, {"lstm_hidden_size": 256}),
    "gru": ({}, {"rnn_type": "gru"}),
    "k4": ({}, {"n_posterior_samples": 4}),
    "k0": ({}, {"n_posterior_samples": 0}),
    "reward-step": ({"reward_coef": 1.0, "decode_window": 0}, {}),
    "reward-trial": ({"reward_coef": 1.0, "decode_window": "trial"}, {}),
    "auto": ({"kl_coef": "auto"}, {}),
    "full": ({}, {"posterior_kwargs": {"prior_std": 1.0, "covariance": "full"}}),
}
#: Environment steps of training
TIMESTEPS = dict.fromkeys(VARIANTS, 500_000) | {"long": 1_000_000}
#: Steps after which an agent is saved besides the end, as VARIANT@STEPS-SEED.zip
SAVED_AT = {"long": (100_000, 300_000)}


class SaveAt(BaseCallback):
    """Save the agent when the rollout that follows some numbers of steps begins.

    :param paths: files by numbers of steps
    """

    def __init__(self, paths: dict[int, Path]) -> None:
        super().__init__()
        self._paths = paths

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        while self._paths and self.num_timesteps >= min(self._paths):
            self.model.save(self._paths.pop(min(self._paths)))


def train(variant: str, seed: int, timesteps: int, out: Path) -> None:
    """Train one agent, and save it as VARIANT-SEED.zip."""
    arguments, policy_kwargs = VARIANTS[variant]
    model = LaplaceRecurrentPPO(
        "LaplaceLstmPolicy",
        make_vec_env(ENV_ID, n_envs=256, seed=1000 * seed),
        seed=seed,
        device="cpu",
        n_steps=50,
        batch_size=1600,
        n_epochs=4,
        gamma=0.9,
        learning_rate=LinearSchedule(2e-3, 2e-4, 1.0),
        ent_coef=LinearSchedule(0.02, 0.0, 1.0),
        policy_kwargs={
            "lstm_hidden_size": 128,
            "shared_lstm": True,
            "enable_critic_lstm": False,
            "net_arch": [64],
            "latent_dim": 64,
            "n_posterior_samples": 1,
            "posterior_kwargs": {"prior_std": 1.0},
            **policy_kwargs,
        },
        **arguments,
    )
    saved = {steps: out / f"{variant}@{steps}-{seed}.zip" for steps in SAVED_AT.get(variant, ())}
    model.learn(timesteps, callback=SaveAt(saved))
    model.save(out / f"{variant}-{seed}.zip")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="train an agent")
    training.add_argument("variant", choices=VARIANTS)
    training.add_argument("--seed", type=int, default=0)
    training.add_argument("--timesteps", type=int, help="environment steps, by default 500000; 1000000 of long")
    for command in (training,):
        command.add_argument("--out", type=Path, default=Path("runs/belief"), help="folder of the agents")
    given = parser.parse_args(arguments)
    th.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    train(given.variant, given.seed, given.timesteps or TIMESTEPS[given.variant], given.out)


if __name__ == "__main__":
    main()
