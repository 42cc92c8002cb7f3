"""``python -m sb3_laplace.studies.evaluate STUDY RUN``: makes what a run still lacks once its agent is trained.

Its agent, if that is made from another after the fact, then its evaluations. One that fails does not stop the others.
"""

import sys
import time
import traceback
import warnings
from pathlib import Path

import torch as th
from stable_baselines3.common.vec_env import VecEnv

from sb3_laplace.algorithm.laplace_recurrent_ppo import LaplaceRecurrentPPO
from sb3_laplace.posthoc.calibrate_posterior import calibrate_posterior
from sb3_laplace.posthoc.convert import load_recurrent_ppo
from sb3_laplace.studies.evaluations import EVALUATIONS, TrainedAgent
from sb3_laplace.studies.provenance import provenance
from sb3_laplace.studies.runs import RunFolder, Study, write_json
from sb3_laplace.studies.training import config_file
from sb3_laplace.zoo.configurations import make_playing_env
from sb3_laplace.zoo.options import import_packages

_DERIVED_MODEL = "agent.zip"


def main() -> int:
    """Make what is missing.

    :return: the exit code, 1 if something failed
    """
    path, name = sys.argv[1:]
    study = Study.load(path)
    import_packages(study.spec.gym_packages, "gym_packages")
    th.set_num_threads(1)
    folder = study.folders[name]
    source = study.source_of(folder)
    if source is not None and folder.agent is None:
        make_derived(folder, source)
    agent = trained_agent(folder, folder if source is None else source)
    failed = []
    for evaluation in folder.missing_evaluations():
        try:
            evaluate(folder, evaluation, agent)
        except Exception:
            traceback.print_exc()
            failed.append(evaluation)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def evaluate(folder: RunFolder, name: str, agent: TrainedAgent) -> None:
    """Make one evaluation, and write what it found.

    :param folder: the folder of the run
    :param name: name of the evaluation
    :param agent: the agent
    """
    settings, start = folder.evaluations[name], time.monotonic()
    measured = EVALUATIONS[name].measure(agent, settings)
    seconds = round(time.monotonic() - start, 1)
    trained = folder.agent
    assert trained is not None
    document = {
        "settings": settings,
        "numbers": measured.numbers,
        "seconds": seconds,
        "steps": trained["steps"],
        "posterior": agent.posterior,
        **provenance(),
        "details": measured.details,
    }
    write_json(folder.evaluation_file(name), document)
    print(f"{name}: {seconds:g} s", flush=True)


def make_derived(folder: RunFolder, source: RunFolder) -> None:
    """Make the agent of a run from that of another, converted, calibrated or both, and write ``agent.json``.

    :param folder: the folder of the run
    :param source: that of the run whose agent is taken
    """
    start = time.monotonic()
    convert, calibrate = (folder.run.configuration[name] for name in ("convert", "calibrate"))
    model = _load(source)
    if convert is not None:
        model = LaplaceRecurrentPPO.from_recurrent_ppo(model, device="cpu", **convert)
    found = None
    if calibrate is not None:
        n_trials, seed = calibrate["n_trials"], calibrate["seed"]
        env = _make_env(source, n_trials, seed)
        try:
            found = calibrate_posterior(model, env, n_trials, seed=seed).to_dict()
        finally:
            env.close()
    model.save(folder.path / _DERIVED_MODEL)
    taken = source.agent
    assert taken is not None
    agent = {
        "model": _DERIVED_MODEL,
        "steps": taken["steps"],
        "seconds": round(time.monotonic() - start, 1),
        "calibration": found,
        **provenance(),
    }
    write_json(folder.agent_file, agent)


def trained_agent(folder: RunFolder, source: RunFolder) -> TrainedAgent:
    """The agent of a run as evaluations take it.

    :param folder: the folder of the run
    :param source: that of the run that was trained, itself or the one whose agent it is made from
    """

    def make_env(n_trials: int, seed: int) -> VecEnv:
        return _make_env(source, n_trials, seed)

    env_kwargs = source.run.configuration["hyperparams"].get("env_kwargs", {})
    return TrainedAgent(lambda: _load(folder), make_env, folder.run.env_id, env_kwargs)


def _load(folder: RunFolder) -> LaplaceRecurrentPPO:
    """The agent of a run. RecurrentPPO's gets a point in place of a posterior, which is what it has."""
    path = _model(folder)
    with warnings.catch_warnings():
        # Schedules do not matter to an agent that only plays
        warnings.filterwarnings("ignore", message=".* were functions")
        if folder.run.configuration.get("algorithm") == "ppo_lstm":
            model = load_recurrent_ppo(path, "cpu")
            return LaplaceRecurrentPPO.from_recurrent_ppo(model, posterior="point", device="cpu")
        return LaplaceRecurrentPPO.load(path, device="cpu")


def _model(folder: RunFolder) -> Path:
    agent = folder.agent
    assert agent is not None
    return folder.path / str(agent["model"])


def _make_env(source: RunFolder, n_trials: int, seed: int) -> VecEnv:
    configuration = source.run.configuration
    return make_playing_env(
        configuration["algorithm"], source.run.env_id, config_file(source), _model(source), n_trials, seed
    )


if __name__ == "__main__":
    sys.exit(main())
