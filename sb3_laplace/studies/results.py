"""The results of a study as one document: the scores of all runs that are finished, and how they learned."""

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np

from sb3_laplace.errors import InputError
from sb3_laplace.studies.evaluations import metric_of
from sb3_laplace.studies.monitoring import episodes
from sb3_laplace.studies.runs import RunFolder, Study
from sb3_laplace.studies.statistics import band
from sb3_laplace.studies.training import monitor_folders

#: What a results file says that it is
FORMAT = "sb3-laplace study 1"

# Points of a learning curve
_N_POINTS = 40
# Digits that are kept: more would only make the files long
_DIGITS = 6


def collect(study: Study) -> dict[str, Any]:
    """The results, as JSON can hold them, with nothing in them that depends on where the study was run.

    :param study: the study
    :return: ``format``, ``study``, ``baseline``, ``agents`` (names), ``environments`` (``metric``, ``sign`` and
        ``reference`` by id), ``evaluations`` (settings by name), ``runs`` (each ``agent``, ``environment``, ``seed``,
        ``steps``, ``seconds`` of training, ``peak_memory`` in MB (None if it was not trained), numbers of
        ``parameters`` and of ``covariance_parameters`` (None if an older version evaluated it) and ``numbers`` by
        evaluation), ``n_runs`` (the unfinished included),
        ``curves`` (by environment and agent: ``steps``, ``mean``, ``low``, ``high`` of the return of training
        episodes), ``versions`` and ``commits``
    :raises InputError: if no run is finished
    """
    finished = [folder for folder in study.folders.values() if folder.is_finished()]
    if not finished:
        raise InputError(f"no run of the study in {str(study.path)!r} is finished: there is nothing to report")
    agents = [folder.agent or {} for folder in finished]
    spec = study.spec
    environments = {}
    for env_id, one in spec.environments.items():
        metric, sign = metric_of(env_id)
        environments[env_id] = {"metric": metric, "sign": sign, "reference": one.reference and list(one.reference)}
    return {
        "format": FORMAT,
        "study": spec.name,
        "baseline": spec.baseline,
        "agents": list(spec.agents),
        "environments": environments,
        "evaluations": spec.evaluations,
        "n_runs": len(study.folders),
        "runs": [_run(folder, agent) for folder, agent in zip(finished, agents, strict=True)],
        "curves": _curves(finished),
        "versions": agents[0]["versions"],
        "commits": sorted({agent["commit"] for agent in agents if agent["commit"] is not None}),
    }


def write_csv(results: dict[str, Any], path: Path) -> None:
    """Write every number of every run on a line; what does not exist is left empty.

    :param results: what :func:`collect` returned
    :param path: the file
    """
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("agent", "environment", "seed", "evaluation", "number", "value"))
        for run in results["runs"]:
            key = (run["agent"], run["environment"], run["seed"])
            for evaluation, numbers in run["numbers"].items():
                for name, value in numbers.items():
                    writer.writerow((*key, evaluation, name, "" if value is None else value))


def values(results: dict[str, Any], agent: str, env_id: str, evaluation: str, number: str) -> dict[int, float]:
    """A number of an agent on an environment by seed, of the runs that have it.

    :param results: what :func:`collect` returned
    :param agent: name of the agent
    :param env_id: id of the environment
    :param evaluation: name of the evaluation
    :param number: name of the number
    """
    found = {}
    for run in results["runs"]:
        if run["agent"] == agent and run["environment"] == env_id:
            value = run["numbers"].get(evaluation, {}).get(number)
            if value is not None:
                found[run["seed"]] = value
    return found


def differences(results: dict[str, Any], agent: str, base: str, env_id: str, number: str) -> dict[int, float]:
    """How much more a number of the evaluation ``return`` is of one agent than of another, by the seeds that both have.

    :param results: what :func:`collect` returned
    :param agent: name of the agent
    :param base: name of the other
    :param env_id: id of the environment
    :param number: name of the number
    """
    own, other = (values(results, name, env_id, "return", number) for name in (agent, base))
    return {seed: own[seed] - other[seed] for seed in own if seed in other}


def learning_curve(folder: RunFolder, edges: np.ndarray) -> np.ndarray:
    """Mean return of the training episodes that ended between successive numbers of steps.

    :param folder: folder of a run that was trained, over several attempts if it was killed
    :param edges: numbers of steps, ascending, shape (n + 1,)
    :return: shape (n,), NaN where no episode ended
    """
    steps, returns = [], []
    for monitor, first, last in monitor_folders(folder):
        own_steps, own_returns = episodes(monitor)
        kept = first + own_steps <= last
        steps.append(first + own_steps[kept])
        returns.append(own_returns[kept])
    which = np.searchsorted(edges, np.concatenate(steps), side="left") - 1
    inside = (which >= 0) & (which < len(edges) - 1)
    counts = np.bincount(which[inside], minlength=len(edges) - 1)
    sums = np.bincount(which[inside], np.concatenate(returns)[inside], minlength=len(edges) - 1)
    with np.errstate(invalid="ignore"):
        return sums / np.where(counts > 0, counts, math.nan)


def _run(folder: RunFolder, agent: dict[str, Any]) -> dict[str, Any]:
    run = folder.run
    numbers = {}
    posterior: dict[str, Any] = {}
    for name in folder.evaluations:
        found = folder.evaluation(name)
        assert found is not None
        numbers[name] = {key: _rounded(value) for key, value in found["numbers"].items()}
        posterior = found.get("posterior", posterior)
    return {
        "agent": run.agent,
        "environment": run.env_id,
        "seed": run.seed,
        "steps": agent["steps"],
        "seconds": agent["seconds"],
        "peak_memory": agent.get("peak_memory"),
        "parameters": posterior.get("policy_parameters"),
        "covariance_parameters": posterior.get("covariance_parameters"),
        "numbers": numbers,
    }


def _curves(finished: list[RunFolder]) -> dict[str, dict[str, Any]]:
    trained = [folder for folder in finished if folder.run.source is None]
    curves: dict[str, dict[str, Any]] = {}
    kinds = dict.fromkeys((folder.run.env_id, folder.run.agent) for folder in trained)
    for env_id, agent in kinds:
        folders = [folder for folder in trained if (folder.run.env_id, folder.run.agent) == (env_id, agent)]
        edges = np.linspace(0.0, max(folder.run.steps for folder in folders), _N_POINTS + 1)
        parts = band(np.array([learning_curve(folder, edges) for folder in folders]))
        curve = {
            name: [_rounded(value) for value in part] for name, part in zip(("mean", "low", "high"), parts, strict=True)
        }
        curves.setdefault(env_id, {})[agent] = {"steps": [_rounded(value) for value in edges[1:]], **curve}
    return curves


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.{_DIGITS}g}")
