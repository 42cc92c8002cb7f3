"""Train a meta-RL agent on the bandit task and show what it learned and how sure it is.

python examples/bandit_demo.py [--timesteps 1000000] [--trials 2000] [--seed 0] [--out runs/bandit_demo]
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from stable_baselines3.common.utils import LinearSchedule

from sb3_laplace import (
    LaplaceRecurrentPPO,
    PosteriorCallback,
    diagnose,
    make_vec_env,
    posterior_trace,
    write_report,
)
from sb3_laplace_envs import DirichletBanditVectorEnv
from sb3_laplace_envs.oracles import BetaThompsonSampling, DirichletIndexPolicy, DirichletThompsonSampling, Oracle

ENV_ID = "sb3_laplace/DirichletBandit-v0"
PULLS = (10, 25, 50)
ENTROPY_AFTER = (1, 10, 50)
# The prior of the training tasks. Agent and oracles go by it, also on test tasks of another concentration.
TRAINED_ON = 0.2
CONCENTRATIONS = (TRAINED_ON, 0.3)


def train(timesteps: int, seed: int, out: Path) -> LaplaceRecurrentPPO:
    """Train an agent that acts on samples of its posterior."""
    env = make_vec_env(ENV_ID, n_envs=256, seed=seed)
    model = LaplaceRecurrentPPO(
        "LaplaceLstmPolicy",
        env,
        n_steps=50,
        batch_size=1600,
        n_epochs=4,
        gamma=0.9,
        learning_rate=LinearSchedule(2e-3, 2e-4, 1.0),
        ent_coef=LinearSchedule(0.02, 0.0, 1.0),  # explore early, commit late
        seed=seed,
        device="cpu",
        tensorboard_log=str(out),
        policy_kwargs={
            "lstm_hidden_size": 128,
            "shared_lstm": True,
            "enable_critic_lstm": False,
            "net_arch": [64],
            "latent_dim": 64,
            "n_posterior_samples": 1,
            # Wide enough that what the agent learns in a trial shows in the entropy
            "posterior_kwargs": {"prior_std": 1.0},
        },
    )
    return model.learn(timesteps, callback=PosteriorCallback(figure_freq=10), progress_bar=True)


def play_agent(
    model: LaplaceRecurrentPPO, concentration: float, n_trials: int, deterministic: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Play one trial in each of n_trials environments.

    :return: regret and entropy of the posterior (nats) at each pull, both of shape (50, n_trials)
    """
    env = make_vec_env(ENV_ID, n_envs=n_trials, seed=10_000, env_kwargs={"concentration": concentration})
    obs, state, start = env.reset(), None, np.ones(n_trials, dtype=bool)
    regret, entropy = [], []
    for _ in range(max(PULLS)):
        actions, state = model.predict(obs, state, start, deterministic)
        obs, _, start, _ = env.step(actions)
        regret.append(env.step_infos["regret"])
        entropy.append(model.policy.posterior(state).entropy().numpy())
    return np.stack(regret), np.stack(entropy)


def play_oracle(
    oracle_class: Callable[..., Oracle], task_concentration: float, n_trials: int, **kwargs: float
) -> np.ndarray:
    """Play the same trials with an oracle; regret, shape (50, n_trials)."""
    env = DirichletBanditVectorEnv(num_envs=n_trials, concentration=task_concentration)
    oracle = oracle_class(env, **kwargs)
    obs, _ = env.reset(seed=10_000)
    regret = []
    for _ in range(max(PULLS)):
        oracle.observe(obs)
        obs, _, _, _, info = env.step(oracle.act())
        regret.append(info["regret"])
    return np.stack(regret)


def play_uniform(concentration: float, n_trials: int) -> np.ndarray:
    """Uniformly random pulls; regret, shape (50, n_trials)."""
    env = DirichletBanditVectorEnv(num_envs=n_trials, concentration=concentration)
    env.reset(seed=10_000)
    rng = np.random.default_rng(0)
    return np.stack([env.step(rng.integers(5, size=n_trials))[4]["regret"] for _ in range(max(PULLS))])


def regret_after(regret: np.ndarray) -> list[str]:
    """Mean cumulative regret after some pulls, as the cells of a table."""
    cumulative = regret.cumsum(0).mean(1)
    return [f"{cumulative[pulls - 1]:.2f}" for pulls in PULLS]


def print_table(model: LaplaceRecurrentPPO, n_trials: int) -> None:
    """Regret and entropy on fresh trials, beside uniform pulls, Thompson sampling and the best known policy."""
    header = [f"t={pulls}" for pulls in PULLS] + [f"H({pulls})" for pulls in ENTROPY_AFTER]
    print(f"\nMean cumulative regret after t pulls, and entropy of the posterior in nats ({n_trials} fresh trials)\n")
    for concentration in CONCENTRATIONS:
        beta = play_oracle(BetaThompsonSampling, concentration, n_trials)
        exact, best = (
            play_oracle(oracle_class, concentration, n_trials, concentration=TRAINED_ON)
            for oracle_class in (DirichletThompsonSampling, DirichletIndexPolicy)
        )
        rows = {
            "uniform random": regret_after(play_uniform(concentration, n_trials)),
            "Thompson, Beta(1,1) prior": regret_after(beta),
            "Thompson, exact prior": regret_after(exact),
        }
        for name, deterministic in (("agent, sampling", False), ("agent, deterministic", True)):
            regret, entropy = play_agent(model, concentration, n_trials, deterministic)
            cells = [f"{entropy[pulls - 1].mean():.1f}" for pulls in ENTROPY_AFTER]
            rows[name] = regret_after(regret) + cells
        rows["best known"] = regret_after(best)
        print(f"{f'concentration {concentration}':<28}" + "".join(f"{name:>9}" for name in header))
        for name, row in rows.items():
            print(f"  {name:<26}" + "".join(f"{cell:>9}" for cell in row))
        print()


def main(arguments: list[str] | None = None) -> None:
    """Train, print the table, say where everything is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--timesteps", type=int, default=1_000_000, help="environment steps of training")
    parser.add_argument("--trials", type=int, default=2000, help="fresh trials to play after training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/bandit_demo"), help="folder of the model and the logs")
    args = parser.parse_args(arguments)

    model = train(args.timesteps, args.seed, args.out)
    path = args.out / "model.zip"
    model.save(path)
    print_table(model, args.trials)
    trace = posterior_trace(model, make_vec_env(ENV_ID, n_envs=min(256, args.trials), seed=20_000), args.trials)
    diagnosis = diagnose(trace)
    print(f"Diagnosis\n\n{diagnosis.table()}\n")
    report = args.out / "report.html"
    write_report(report, {"agent": trace}, {"agent": diagnosis})
    print(f"Report: {report}\nModel:  {path}\nLogs:   {args.out}")
    print(f"Watch the posterior:  .venv/bin/tensorboard --logdir {args.out}")


if __name__ == "__main__":
    main()
