"""The command line: ``sb3-laplace``, or ``python -m sb3_laplace``."""

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_laplace.algorithm.laplace_recurrent_ppo import LaplaceRecurrentPPO
from sb3_laplace.errors import InputError, input_errors, is_bug
from sb3_laplace.evaluation.belief import ORACLE_TASKS, evaluate_belief
from sb3_laplace.evaluation.belief_evaluation import MIN_TRIALS, BeliefEvaluation
from sb3_laplace.evaluation.diagnostics import Diagnosis, diagnose
from sb3_laplace.evaluation.player import player_env
from sb3_laplace.evaluation.traces import PosteriorTrace, posterior_trace
from sb3_laplace.options import MAX_SEED, OneLineParser, check_device
from sb3_laplace.plots.report import write_report
from sb3_laplace.posthoc.convert import load_recurrent_ppo
from sb3_laplace.vec_env import GymnasiumVecEnv, make_vec_env
from sb3_laplace.version import __version__

# Environments that are stepped together: batched ones, and those that are stepped one after another
_BATCHED, _SINGLE = 256, 16
_PICKLE_NOTE = (
    "Models that this version has saved are loaded without running code. Loading others, and VecNormalize statistics, "
    "runs the pickled code in the file, as Stable-Baselines3 does: only open files that you trust, or give "
    "--weights-only, which refuses them. Nothing is downloaded."
)
# RL Zoo's programs, which read their own arguments
_ZOO_COMMANDS = {
    "train": "train an agent from a configuration file (RL Zoo's train)",
    "enjoy": "play with a trained agent (RL Zoo's enjoy)",
    "tune": "search for hyperparameters with Optuna (RL Zoo's train -optimize)",
    "plot": "draw training curves and evaluations (RL Zoo's plots): plot {train,all,file}",
}
# What these need, by the names under which it is imported
_ZOO_PACKAGES = ("rl_zoo3", "requests", "scipy", "seaborn")
_EXAMPLES = """examples:
  sb3-laplace train --algo laplace_ppo_lstm --env sb3_laplace/DirichletBandit-v0 --seed 0
  sb3-laplace enjoy --algo laplace_ppo_lstm --env sb3_laplace/DirichletBandit-v0 -f logs --no-render
  sb3-laplace tune --algo laplace_ppo_lstm --env sb3_laplace/DirichletBandit-v0 -n 200000 --n-trials 20
  sb3-laplace plot train -a laplace_ppo_lstm -e sb3_laplace/DirichletBandit-v0 -f logs
  sb3-laplace diagnose MODEL.zip --env sb3_laplace/DirichletBandit-v0

sb3-laplace COMMAND --help says what a command takes."""
#: Exit codes: an error of the user's, and Ctrl-C as shells have it
BAD_INPUT, INTERRUPTED = 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    :param arguments: of the command line; by default those of the process
    :return: the exit code: 0, 2 for bad input, 130 if it was interrupted
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if words and words[0] in _ZOO_COMMANDS:
            return _zoo(words[0], words[1:])
        options = _parser().parse_args(words)
        return options.run(options)
    except InputError as error:
        print(f"sb3-laplace: error: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("sb3-laplace: interrupted", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="sb3-laplace",
        description="Laplace posteriors for recurrent meta-RL agents.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, text in _ZOO_COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False)
    _add_diagnose(commands)
    return parser


def _zoo(command: str, arguments: list[str]) -> int:
    """One of RL Zoo's programs, imported only here: training without it stays as light as it was."""
    try:
        from sb3_laplace.zoo.commands import run

        return run(command, arguments)
    except ModuleNotFoundError as error:
        package = str(error.name).split(".")[0]
        if package not in _ZOO_PACKAGES:
            raise
        raise InputError(f'{command} needs {package}: pip install "sb3-laplace[zoo]"') from error


# -- loading ------------------------------------------------------------------------------------------------


def load_agent(path: str | Path, device: str = "auto", weights_only: bool = False) -> LaplaceRecurrentPPO:
    """Load one of our agents, or a sb3-contrib RecurrentPPO agent, which gets a posterior over its state.

    No code in the file is run if it holds plain settings, as those do that this version saves.

    :param path: the zip, with or without its ending
    :param device: device on which the agent runs
    :param weights_only: refuse a file that cannot be loaded without running its code
    :raises InputError: if there is no such file, or it holds no such agent
    """
    if not any(file.is_file() for file in (Path(path), Path(f"{path}.zip"))):
        raise InputError(f"there is no file {str(path)!r}")
    try:
        with warnings.catch_warnings():
            # Schedules do not matter to an agent that only plays
            warnings.filterwarnings("ignore", message=".* were functions")
            return LaplaceRecurrentPPO.load(path, device=device, weights_only=True)
    except Exception as error:
        if is_bug(error):
            raise
        if weights_only:
            raise InputError(f"--weights-only: {error}") from error
    try:
        model = load_recurrent_ppo(path, device)
        if not isinstance(model, LaplaceRecurrentPPO):
            model = LaplaceRecurrentPPO.from_recurrent_ppo(model, device=device)
    except Exception as error:
        if is_bug(error):
            raise
        # What a damaged file makes the unpickler raise can be anything
        raise InputError(f"{str(path)!r} cannot be loaded ({type(error).__name__}): {error}") from error
    print(f"sb3-laplace: note: {path} holds no plain settings, the code pickled in it was run", file=sys.stderr)
    return model


def make_env(
    env_id: str, n_trials: int, seed: int, env_kwargs: dict[str, Any], vecnormalize: str | None = None
) -> VecEnv:
    """A batch of environments of a size that suits a number of trials.

    :param env_id: id of the environment
    :param n_trials: number of trials to be played
    :param seed: seed of the environments
    :param env_kwargs: keyword arguments of the environment
    :param vecnormalize: file of VecNormalize statistics, which are not updated
    :raises InputError: if there is no such environment or file, or they do not fit
    """
    try:
        with warnings.catch_warnings():
            # SB3 asks every environment for images
            warnings.filterwarnings("ignore", message=".*render_mode='rgb_array'")
            probe = make_vec_env(env_id, n_envs=1, env_kwargs=env_kwargs)
            probe.close()
            n_rounds = -(-n_trials // (_BATCHED if isinstance(probe, GymnasiumVecEnv) else _SINGLE))
            env = make_vec_env(env_id, n_envs=-(-n_trials // n_rounds), seed=seed, env_kwargs=env_kwargs)
    except (gym.error.Error, ImportError, TypeError, ValueError) as error:
        raise InputError(f"environment {env_id!r} cannot be made: {error}") from error
    if vecnormalize is None:
        return env
    try:
        normalized = VecNormalize.load(vecnormalize, env)
    except Exception as error:
        raise InputError(f"{vecnormalize!r} holds no VecNormalize statistics for {env_id}: {error}") from error
    normalized.training = normalized.norm_reward = False
    return normalized


def parse_env_kwargs(items: Sequence[str]) -> dict[str, Any]:
    """Keyword arguments written ``name=value``, the value in JSON (or text that is none).

    :raises InputError: if there is no "="
    """
    kwargs: dict[str, Any] = {}
    for item in items:
        name, separator, text = item.partition("=")
        if not name or not separator:
            raise InputError(f"--env-kwargs takes NAME=VALUE, got {item!r}")
        try:
            kwargs[name] = json.loads(text)
        except json.JSONDecodeError:
            kwargs[name] = text
    return kwargs


# -- diagnose -----------------------------------------------------------------------------------------------


def _add_diagnose(commands: Any) -> None:
    parser = commands.add_parser(
        "diagnose",
        help="play trials and judge what the posterior does",
        description="Play trials with an agent (ours, or sb3-contrib's RecurrentPPO), judge its posterior, print the "
        "verdict and write trace.npz, diagnosis.json and report.html. Where an oracle knows the exact belief about the "
        f"task, and there are at least {MIN_TRIALS} trials, the agent's is held against it (belief.csv).",
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
    parser.add_argument("--out", metavar="DIR", help="folder for the results (default: MODEL-diagnosis)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the trials and the actions (default: 0)")
    parser.add_argument("--device", default="auto", help="device the agents run on (default: auto)")
    parser.set_defaults(run=_diagnose)


def _diagnose(options: argparse.Namespace) -> int:
    if options.n_trials < 1:
        raise InputError(f"--n-trials must be at least 1, got {options.n_trials}")
    if options.seed < 0:
        raise InputError(f"--seed must be at least 0, got {options.seed}")
    if options.seed > MAX_SEED:
        raise InputError(f"--seed must be at most {MAX_SEED}, got {options.seed}")
    check_device(options.device)
    env_kwargs = parse_env_kwargs(options.env_kwargs)
    paths = [options.model, *options.compare]
    if options.weights_only and options.vecnormalize is not None:
        raise InputError("--weights-only: VecNormalize statistics cannot be loaded without running the file's code")
    # All of them before hours are spent on the first
    loaded = [load_agent(path, options.device, options.weights_only) for path in paths]
    agents = dict(zip(_names(paths), loaded, strict=True))
    for name, agent in agents.items():
        _warn_about_normalization(name, agent, options.vecnormalize)
        env = make_env(options.env, 1, options.seed, env_kwargs, options.vecnormalize)
        _fit(agent, env)
        env.close()
    folder = Path(f"{Path(options.model).stem}-diagnosis" if options.out is None else options.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Not when the trials have been played
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(f"--out: {error}") from error

    traces: dict[str, PosteriorTrace] = {}
    diagnoses: dict[str, Diagnosis] = {}
    beliefs: dict[str, BeliefEvaluation] = {}
    for name, agent in agents.items():
        env = make_env(options.env, options.n_trials, options.seed, env_kwargs, options.vecnormalize)
        # The same trials for all
        set_random_seed(options.seed)
        traces[name] = _play(agent, env, options)
        env.close()
        diagnoses[name] = diagnose(traces[name])
        print(f"{name} on {options.env}\n\n{diagnoses[name].table()}\n")
        if traces[name].interrupted:
            break
        if _has_oracle(options):
            with input_errors():
                beliefs[name] = _evaluate_belief(agent, options, env_kwargs)
            print(f"Beside the exact belief: {beliefs[name].table()}\n")
    with input_errors():
        _write(folder, traces, diagnoses, beliefs)
    return INTERRUPTED if any(trace.interrupted for trace in traces.values()) else 0


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


def _play(agent: LaplaceRecurrentPPO, env: VecEnv, options: argparse.Namespace) -> PosteriorTrace:
    with warnings.catch_warnings(), input_errors():
        # Said below in a line of our own
        warnings.filterwarnings("ignore", message="Interrupted")
        trace = posterior_trace(agent, env, options.n_trials, deterministic=options.deterministic)
    if trace.interrupted:
        n_complete = trace.complete.sum()
        print(f"Interrupted: going on with {n_complete} of {options.n_trials} trials.", file=sys.stderr)
    return trace


def _has_oracle(options: argparse.Namespace) -> bool:
    """Whether the exact belief is known, of observations as the agent sees them."""
    return _oracle_task(options) in ORACLE_TASKS and options.vecnormalize is None and options.n_trials >= MIN_TRIALS


def _oracle_task(options: argparse.Namespace) -> str:
    """The environment's id without the module."""
    return options.env.rpartition(":")[2]


def _evaluate_belief(
    agent: LaplaceRecurrentPPO, options: argparse.Namespace, env_kwargs: dict[str, Any]
) -> BeliefEvaluation:
    return evaluate_belief(
        agent, _oracle_task(options), options.n_trials, options.seed, env_kwargs, options.deterministic
    )


def _names(paths: Sequence[str]) -> list[str]:
    """A name for each file, its stem, numbered where several have the same."""
    stems = [Path(path).stem for path in paths]
    return [
        stem if stems.count(stem) == 1 else f"{stem} ({stems[: i + 1].count(stem)})" for i, stem in enumerate(stems)
    ]


def _write(
    folder: Path,
    traces: dict[str, PosteriorTrace],
    diagnoses: dict[str, Diagnosis],
    beliefs: dict[str, BeliefEvaluation],
) -> None:
    """Write traces and beliefs (of agents to compare with as ``trace-NAME.npz``), diagnoses and the report."""
    written = []
    for i, (name, trace) in enumerate(traces.items()):
        written.append(folder / ("trace.npz" if i == 0 else f"trace-{name}.npz"))
        trace.save(written[-1])
        if name in beliefs:
            written.append(folder / ("belief.csv" if i == 0 else f"belief-{name}.csv"))
            beliefs[name].to_csv(written[-1])
    written.append(folder / "diagnosis.json")
    document = {"agents": {name: diagnosis.to_dict() for name, diagnosis in diagnoses.items()}}
    written[-1].write_text(json.dumps(document, indent=2), encoding="utf-8")
    try:
        write_report(folder / "report.html", traces, diagnoses, beliefs)
        written.append(folder / "report.html")
    except ImportError as error:
        print(f"sb3-laplace: no report: {error}", file=sys.stderr)
    print("Wrote " + ", ".join(str(path) for path in written))
