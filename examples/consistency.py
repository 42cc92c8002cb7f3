"""Does kl_coef="auto" make beliefs consistent, and what does it cost? Agents with it and with a fixed coefficient.

python examples/consistency.py train bandit auto --seed 0 [--out runs/consistency]    # about five minutes each
python examples/consistency.py evaluate [--out runs/consistency]                      # all that were trained
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from agents import TASKS, make_agent
from stable_baselines3.common.logger import configure

from sb3_laplace import LaplaceRecurrentPPO, diagnose, make_vec_env, posterior_trace

#: Coefficients of the KL that are compared
KL_COEFS: dict[str, Any] = {"fixed": 1e-4, "auto": "auto"}

#: Environment steps of training
TIMESTEPS = {"bandit": 2_000_000, "grid": 1_500_000, "regression": 1_300_000}


def train(task: str, kl: str, seed: int, out: Path) -> None:
    """Train one agent, and save it as TASK-KL-SEED.zip."""
    name = f"{task}-{kl}-{seed}"
    model = make_agent(task, seed, {"kl_coef": KL_COEFS[kl]}, {})
    model.set_logger(configure(str(out / name), ["csv"]))
    model.learn(TIMESTEPS[task])
    model.save(out / f"{name}.zip")


def measure(task: str, path: Path, n_trials: int) -> dict[str, Any]:
    """The returns of an agent on fresh trials, and how much its belief moves for what it claims, by thirds."""
    model = LaplaceRecurrentPPO.load(path, device="cpu")
    numbers: dict[str, Any] = {"kl_multiplier": model.kl_multiplier}
    for name, deterministic in (("sampled", False), ("mode", True)):
        th.manual_seed(0)
        env = make_vec_env(TASKS[task][0], n_envs=250, seed=900_000)
        trace = posterior_trace(model, env, n_trials, deterministic=deterministic)
        numbers[name] = {"return": float(trace.returns.mean()), "se": float(trace.returns.std() / np.sqrt(n_trials))}
        finding = diagnose(trace).findings["overconfidence"]
        readout = trace.settings["task_readout"]
        numbers[name] |= {key: value.value for key, value in finding.numbers.items()}
        numbers[name] |= {"space": finding.space, "r2": readout["r2"] if isinstance(readout, dict) else None}
    return numbers


def evaluate(out: Path, n_trials: int) -> None:
    """Measure the agents that have not been yet, a JSON file each, and print a line for each."""
    for path in sorted(out.glob("*.zip")):
        result = path.with_suffix(".json")
        if not result.exists():
            result.write_text(json.dumps(measure(path.stem.split("-")[0], path, n_trials), indent=2))
        numbers = json.loads(result.read_text())
        for name in ("sampled", "mode"):
            row = {key: f"{value:.3g}" if isinstance(value, float) else value for key, value in numbers[name].items()}
            print(path.stem, name, " ".join(f"{key}={value}" for key, value in row.items()))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="train an agent")
    training.add_argument("task", choices=TASKS)
    training.add_argument("kl", choices=KL_COEFS)
    training.add_argument("--seed", type=int, default=0)
    evaluation = commands.add_parser("evaluate", help="play fresh trials with all agents that were trained")
    evaluation.add_argument("--trials", type=int, default=1000, help="fresh trials of each agent, twice")
    for command in (training, evaluation):
        command.add_argument("--out", type=Path, default=Path("runs/consistency"), help="folder of agents and logs")
    given = parser.parse_args(arguments)
    th.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    if given.command == "train":
        train(given.task, given.kl, given.seed, given.out)
    else:
        evaluate(given.out, given.trials)


if __name__ == "__main__":
    main()
