"""Attention beside an LSTM: the same task, settings and number of steps, another memory.

python examples/attention.py bandit gtrxl [--posterior laplace] [--timesteps 300000] [--seed 0]
python examples/attention.py regression lstm --timesteps 1000000
"""

import argparse
import time
from collections.abc import Sequence
from typing import Any

import torch as th
from agents import TASKS, make_agent

from sb3_laplace import LaplaceRecurrentPPO, evaluate_regression, make_vec_env, posterior_trace

#: Of attention as far as they are not its own defaults: trials of 50 steps are remembered whole
CORES: dict[str, dict[str, Any]] = {
    "lstm": {"rnn_type": "lstm"},
    "gtrxl": {"rnn_type": "gtrxl", "lstm_kwargs": {"memory_length": 50}},
    "gtrxl-sum": {"rnn_type": "gtrxl", "lstm_kwargs": {"memory_length": 50, "gating": None}},
}
N_PAIRS = (1, 3, 5, 10, 30)


def regret(model: LaplaceRecurrentPPO, n_trials: int) -> float:
    """Mean regret of a fresh trial of 50 pulls, acting on the mode."""
    env = make_vec_env(TASKS["bandit"][0], n_envs=n_trials, seed=10**6)
    trace = posterior_trace(model, env, n_trials, deterministic=True, progress_bar=False)
    return float(trace.metrics["regret"].sum(1).mean())


def main(arguments: Sequence[str] | None = None) -> None:
    """Train an agent and print how fast it was and how good it has become.

    :param arguments: command line without the program's name
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("bandit", "regression"))
    parser.add_argument("core", choices=CORES)
    parser.add_argument("--posterior", choices=("point", "laplace"), default="point")
    parser.add_argument("--timesteps", type=int, default=300_000)
    parser.add_argument("--trials", type=int, default=1000, help="fresh trials, or functions, of the evaluation")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    th.set_num_threads(1)
    of_posterior = {"posterior": "point", "posterior_kwargs": {}} if options.posterior == "point" else {}
    model = make_agent(options.task, options.seed, {"kl_coef": 0.0}, {**of_posterior, **CORES[options.core]})
    begin = time.process_time()
    model.learn(options.timesteps)
    seconds = time.process_time() - begin
    print(
        f"{options.task}, {options.core}, {options.posterior}, seed {options.seed}: {model.num_timesteps} steps in "
        f"{seconds:.0f} s of one core, {model.num_timesteps / seconds:.0f} a second"
    )
    if options.task == "bandit":
        print(f"regret {regret(model, options.trials):.2f}")
        return
    evaluation = evaluate_regression(model, n_functions=options.trials, n_observed=N_PAIRS)
    print(evaluation.table())


if __name__ == "__main__":
    main()
