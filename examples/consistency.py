"""Does kl_coef="auto" make beliefs consistent, and what does it cost? Agents with it and with a fixed coefficient.

python examples/consistency.py train bandit auto --seed 0 [--out runs/consistency]    # about five minutes each
python examples/consistency.py evaluate [--out runs/consistency]                      # all that were trained
python examples/consistency.py report [--out runs/consistency]                        # the table in docs/belief.md
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from agents import TASKS, make_agent
from belief_study import cell, insert
from stable_baselines3.common.logger import configure

from sb3_laplace import LaplaceRecurrentPPO, diagnose, make_vec_env, posterior_trace
from sb3_laplace.studies.tables import markdown

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
    numbers: dict[str, Any] = {"kl_multiplier": model.kl_multiplier, "prior_narrowed": model.prior_narrowed}
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


def table(results: dict[str, Any]) -> str:
    """Means over seeds with 95% t-intervals, geometric ones of ratios with their range, differences of the same seeds.

    :param results: what was measured, by TASK-KL-SEED
    """
    ratios = ("moved_to_claimed", *(f"moved_to_claimed_{part}" for part in ("early", "middle", "late")))
    head = ["task", "kl_coef", "seeds", "moved/claimed", "early", "middle", "late", "return, sampled", "return, mode"]
    rows = []
    for task in TASKS:
        of_task: dict[str, dict[str, dict[str, Any]]] = {kl: {} for kl in KL_COEFS}
        for name, numbers in sorted(results.items()):
            its_task, kl, seed = name.split("-")
            if its_task == task:
                of_task[kl][seed] = numbers
        for kl, seeds in of_task.items():
            if seeds:
                cells = [_spread([one["sampled"][key] for one in seeds.values()]) for key in ratios]
                cells += [cell([one[way]["return"] for one in seeds.values()], ".2f") for way in ("sampled", "mode")]
                rows.append([task, kl, str(len(seeds)), *cells])
        both = [(of_task["auto"][seed], one) for seed, one in of_task["fixed"].items() if seed in of_task["auto"]]
        if both:
            gains = [
                [auto[way]["return"] - fixed[way]["return"] for auto, fixed in both] for way in ("sampled", "mode")
            ]
            cells = [cell(gain, "+.2f") for gain in gains]
            rows.append([task, "auto - fixed", str(len(both)), *[""] * 4, *cells])
    return markdown(head, rows)


def _spread(ratios: list[float]) -> str:
    """Geometric mean, least and largest."""
    return f"{np.exp(np.mean(np.log(ratios))):.3g} ({min(ratios):.3g} to {max(ratios):.3g})"


def report(out: Path, docs: Path) -> None:
    """Collect the JSON files, and write them and the table to the documentation."""
    results = {path.stem: json.loads(path.read_text()) for path in sorted(out.glob("*.json"))}
    (docs / "results" / "consistency.json").write_text(json.dumps(results, indent=1) + "\n")
    document = docs / "belief.md"
    text = insert(document.read_text(encoding="utf-8"), {"consistency": table(results)})
    document.write_text(text, encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="train an agent")
    training.add_argument("task", choices=TASKS)
    training.add_argument("kl", choices=KL_COEFS)
    training.add_argument("--seed", type=int, default=0)
    evaluation = commands.add_parser("evaluate", help="play fresh trials with all agents that were trained")
    evaluation.add_argument("--trials", type=int, default=1000, help="fresh trials of each agent, twice")
    reporting = commands.add_parser("report", help="write the table")
    reporting.add_argument("--docs", type=Path, default=Path(__file__).parent.parent / "docs", help="their folder")
    for command in (training, evaluation, reporting):
        command.add_argument("--out", type=Path, default=Path("runs/consistency"), help="folder of agents and logs")
    given = parser.parse_args(arguments)
    th.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    if given.command == "train":
        train(given.task, given.kl, given.seed, given.out)
    elif given.command == "evaluate":
        evaluate(given.out, given.trials)
    else:
        report(given.out, given.docs)


if __name__ == "__main__":
    main()
