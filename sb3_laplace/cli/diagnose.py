"""The command ``diagnose``: play trials, judge the posterior, and calibrate it if asked to."""

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv

from sb3_laplace.algorithm.laplace_recurrent_ppo import LaplaceRecurrentPPO
from sb3_laplace.cli.agents import load_agent, make_env, parse_env_kwargs
from sb3_laplace.errors import InputError, input_errors
from sb3_laplace.evaluation.belief import ORACLE_TASKS, evaluate_belief
from sb3_laplace.evaluation.belief_evaluation import MIN_TRIALS as MIN_BELIEF_TRIALS
from sb3_laplace.evaluation.belief_evaluation import BeliefEvaluation
from sb3_laplace.evaluation.diagnostics import Diagnosis, diagnose
from sb3_laplace.evaluation.player import player_env
from sb3_laplace.evaluation.traces import PosteriorTrace, posterior_trace
from sb3_laplace.options import MAX_SEED, check_device
from sb3_laplace.plots.report import write_report
from sb3_laplace.posthoc.calibrate_posterior import (
    MIN_TRIALS,
    PosteriorCalibration,
    calibratable_layer,
    calibrate_posterior,
)

#: Exit code of Ctrl-C, as shells have it
INTERRUPTED = 130
_PICKLE_NOTE = (
    "Models that this version has saved are loaded without running code. Loading others, and VecNormalize statistics, "
    "runs the pickled code in the file, as Stable-Baselines3 does: only open files that you trust, or give "
    "--weights-only, which refuses them. Nothing is downloaded."
)


def add_diagnose(commands: Any) -> None:
    parser = commands.add_parser(
        "diagnose",
        help="play trials and judge what the posterior does",
        description="Play trials with an agent (ours, or sb3-contrib's RecurrentPPO), judge its posterior, print the "
        "verdict and write trace.npz, diagnosis.json and report.html. Where an oracle knows the exact belief about the "
        f"task, and there are at least {MIN_BELIEF_TRIALS} trials, the agent's is held against it (belief.csv).",
        epilog=_PICKLE_NOTE,
    )
    parser.add_argument("model", metavar="MODEL.zip", help="the agent")
    parser.add_argument("--env", required=True, metavar="ID", help="id of the environment, or module:id")
    parser.add_argument(
        "--env-kwargs",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="keyword arguments of the environment, values in JSON",
    )
    parser.add_argument("--n-trials", type=int, default=500, metavar="N", help="number of trials (default: 500)")
    parser.add_argument("--deterministic", action="store_true", help="act on the posterior's mean and take the mode")
    parser.add_argument("--vecnormalize", metavar="PATH", help="VecNormalize statistics, used for every agent")
    parser.add_argument("--weights-only", action="store_true", help="refuse files whose code would have to be run")
    parser.add_argument("--compare", nargs="+", default=[], metavar="OTHER.zip", help="agents to show beside it")
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="fit prior and noise of MODEL to other trials, judge it once more, and write it as MODEL-calibrated.zip "
        "beside the report",
    )
    parser.add_argument("--out", metavar="DIR", help="folder for the results (default: MODEL-diagnosis)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the trials and the actions (default: 0)")
    parser.add_argument("--device", default="auto", help="device the agents run on (default: auto)")
    parser.set_defaults(run=_diagnose)


def _diagnose(options: argparse.Namespace) -> int:
    _check(options)
    paths = [options.model, *options.compare]
    # All of them before hours are spent on the first
    loaded = [load_agent(path, options.device, options.weights_only) for path in paths]
    *names, calibrated = _names([*paths, f"{Path(options.model).stem}-calibrated"])
    agents = dict(zip(names, loaded, strict=True))
    if options.calibrate:
        with input_errors():
            calibratable_layer(loaded[0])
    for name, agent in agents.items():
        _warn_about_normalization(name, agent, options.vecnormalize)
        env = make_env(options.env, 1, options.seed, options.env_kwargs, options.vecnormalize)
        _fit(agent, env)
        env.close()
    folder = Path(f"{Path(options.model).stem}-diagnosis" if options.out is None else options.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Not when the trials have been played
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(f"--out: {error}") from error

    results = _Results(options)
    calibration, problem, source = None, None, ""
    # Whatever happens, what was played before is kept
    try:
        for name, agent in agents.items():
            results.add(name, agent)
        if options.calibrate and not results.is_interrupted:
            source = "--calibrate: "
            calibration = _calibrate(loaded[0], options)
            with input_errors():
                loaded[0].save(folder / f"{calibrated}.zip")
            print(f"Calibrated model: {folder / f'{calibrated}.zip'}")
            results.add(calibrated, loaded[0])
    except InputError as error:
        problem = InputError(f"{source}{error}")
    except KeyboardInterrupt:
        print("Interrupted: going on with what has been played.", file=sys.stderr)
        results.is_interrupted = True
    if results.traces:
        with input_errors():
            _write(folder, results, calibration)
    if problem is not None:
        raise problem
    return INTERRUPTED if results.is_interrupted else 0


class _Results:
    """What has been played and found so far, by the agents' names; after an interruption nothing more is added."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self.traces: dict[str, PosteriorTrace] = {}
        self.diagnoses: dict[str, Diagnosis] = {}
        self.beliefs: dict[str, BeliefEvaluation] = {}
        self.is_interrupted = False

    def add(self, name: str, agent: LaplaceRecurrentPPO) -> None:
        if self.is_interrupted:
            return
        self.traces[name], self.diagnoses[name] = _play(name, agent, self._options)
        self.is_interrupted = self.traces[name].interrupted
        if not self.is_interrupted:
            self.beliefs.update(_evaluate_belief(name, agent, self._options))


def _check(options: argparse.Namespace) -> None:
    """Refuse what is wrong with the options themselves, and read those of the environment."""
    if options.n_trials < 1:
        raise InputError(f"--n-trials must be at least 1, got {options.n_trials}")
    if options.seed < 0:
        raise InputError(f"--seed must be at least 0, got {options.seed}")
    if options.seed > MAX_SEED:
        raise InputError(f"--seed must be at most {MAX_SEED}, got {options.seed}")
    check_device(options.device)
    options.env_kwargs = parse_env_kwargs(options.env_kwargs)
    if options.weights_only and options.vecnormalize is not None:
        raise InputError("--weights-only: VecNormalize statistics cannot be loaded without running the file's code")
    if options.calibrate and Path(options.model).suffix == ".npz":
        raise InputError(f"--calibrate takes a model, and {options.model!r} is a trace, which holds no agent")
    if options.calibrate and options.n_trials < MIN_TRIALS:
        raise InputError(f"--calibrate takes --n-trials of at least {MIN_TRIALS}, got {options.n_trials}")


def _calibrate(agent: LaplaceRecurrentPPO, options: argparse.Namespace) -> PosteriorCalibration:
    """Set an agent's prior and noise, on other trials than those that it is judged on."""
    # Environment i is seeded with seed + i, so the next seeds would play some of the same trials
    seed = int(np.random.SeedSequence((options.seed, 1)).generate_state(1)[0]) % MAX_SEED
    env = make_env(options.env, options.n_trials, seed, options.env_kwargs, options.vecnormalize)
    try:
        with input_errors():
            calibration = calibrate_posterior(agent, env, options.n_trials, options.deterministic, seed)
    finally:
        env.close()
    print(f"{calibration.table()}\n")
    return calibration


def _warn_about_normalization(name: str, agent: LaplaceRecurrentPPO, vecnormalize: str | None) -> None:
    """Say on stderr where the observations are not those that an agent was trained on."""
    if agent.was_normalized and vecnormalize is None:
        advice = "without --vecnormalize PATH it sees other observations than it was trained on"
        print(f"sb3-laplace: warning: {name} was trained under VecNormalize, {advice}", file=sys.stderr)
    elif agent.was_normalized is False and vecnormalize is not None:
        print(f"sb3-laplace: warning: {name} was not trained under VecNormalize", file=sys.stderr)


def _fit(agent: LaplaceRecurrentPPO, env: VecEnv) -> None:
    with input_errors():
        player_env(agent, env)


def _play(name: str, agent: LaplaceRecurrentPPO, options: argparse.Namespace) -> tuple[PosteriorTrace, Diagnosis]:
    """Play the same trials with every agent, judge it and print the verdict."""
    env = make_env(options.env, options.n_trials, options.seed, options.env_kwargs, options.vecnormalize)
    set_random_seed(options.seed)
    with warnings.catch_warnings(), input_errors():
        # Said below in a line of our own
        warnings.filterwarnings("ignore", message="Interrupted")
        trace = posterior_trace(agent, env, options.n_trials, deterministic=options.deterministic)
    if trace.interrupted:
        n_complete = trace.complete.sum()
        print(f"Interrupted: going on with {n_complete} of {options.n_trials} trials.", file=sys.stderr)
    env.close()
    diagnosis = diagnose(trace)
    print(f"{name} on {options.env}\n\n{diagnosis.table()}\n")
    return trace, diagnosis


def _evaluate_belief(name: str, agent: LaplaceRecurrentPPO, options: argparse.Namespace) -> dict[str, BeliefEvaluation]:
    """The agent's belief beside the exact one, by its name; nothing where that is not known."""
    task = options.env.rpartition(":")[2]
    # The oracle watches observations as they are
    if task not in ORACLE_TASKS or options.vecnormalize is not None or options.n_trials < MIN_BELIEF_TRIALS:
        return {}
    with input_errors():
        belief = evaluate_belief(agent, task, options.n_trials, options.seed, options.env_kwargs, options.deterministic)
    print(f"Beside the exact belief: {belief.table()}\n")
    return {name: belief}


def _names(paths: Sequence[str]) -> list[str]:
    """A name for each file, its stem, numbered where several have the same."""
    stems = [Path(path).stem for path in paths]
    return [
        stem if stems.count(stem) == 1 else f"{stem} ({stems[: i + 1].count(stem)})" for i, stem in enumerate(stems)
    ]


def _write(folder: Path, results: _Results, calibration: PosteriorCalibration | None) -> None:
    """Write traces and beliefs (but the first as ``trace-NAME.npz``), the diagnoses and the report."""
    written = []
    for i, (name, trace) in enumerate(results.traces.items()):
        written.append(folder / ("trace.npz" if i == 0 else f"trace-{name}.npz"))
        trace.save(written[-1])
        if name in results.beliefs:
            written.append(folder / ("belief.csv" if i == 0 else f"belief-{name}.csv"))
            results.beliefs[name].to_csv(written[-1])
    written.append(folder / "diagnosis.json")
    document: dict[str, Any] = {"agents": {name: diagnosis.to_dict() for name, diagnosis in results.diagnoses.items()}}
    if calibration is not None:
        document["calibration"] = calibration.to_dict()
    written[-1].write_text(json.dumps(document, indent=2), encoding="utf-8")
    try:
        table = None if calibration is None else calibration.table()
        write_report(folder / "report.html", results.traces, results.diagnoses, results.beliefs, table)
        written.append(folder / "report.html")
    except ImportError as error:
        print(f"sb3-laplace: no report: {error}", file=sys.stderr)
    print("Wrote " + ", ".join(str(path) for path in written))
