"""The tables of a study: means over seeds with 95% bootstrap intervals, and what differs from the baseline."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sb3_laplace.errors import InputError
from sb3_laplace.evaluation.bootstrap import Estimate
from sb3_laplace.studies.results import differences, values
from sb3_laplace.studies.statistics import estimate, interquartile_mean, mean, probability_of_improvement

# Columns of the tables of evaluations: title and name of the number
_EVALUATIONS: dict[str, list[tuple[str, str]]] = {
    "diagnosis": [
        ("moved/claimed", "overconfidence.moved_to_claimed"),
        ("early", "overconfidence.moved_to_claimed_early"),
        ("late", "overconfidence.moved_to_claimed_late"),
        ("entropy, nats a step early", "entropy.nats_per_step_early"),
        ("late", "entropy.nats_per_step_late"),
        ("KL late/early: mean", "consistency.mean_part_ratio"),
        ("covariance", "consistency.covariance_part_ratio"),
        ("confidence less accuracy of the policy", "policy_calibration.gap"),
    ],
    "belief": [
        ("R² of the read-out", "r2"),
        ("of a network", "exact_from_latent"),
        ("claimed/exact variance", "claimed_ratio"),
        ("with R", "total_ratio"),
        ("in 90%", "coverage_90"),
        ("lost (nats)", "lost"),
        ("by the mean", "lost_by_mean"),
        ("by the width", "lost_by_width"),
    ],
    "regression": [
        (f"{title}, {context}, {pairs} pairs", f"{name}.{context}.{pairs}")
        for context, title, name, all_pairs in (
            ("train", "MSE", "mse", (3, 5, 10, 30)),
            ("train", "NLL", "nll_mixture", (3, 10)),
            ("train", "in 90%", "coverage_90", (3, 10)),
            ("test", "MSE", "mse", (10,)),
            ("test", "NLL", "nll_mixture", (10,)),
            ("test", "in 90%", "coverage_90", (10,)),
        )
        for pairs in all_pairs
    ],
    "posthoc": [
        ("widest prior that costs nothing", "prior_std"),
        ("return on its draws", "return"),
        ("unsampled", "return_unsampled"),
        ("difference", "gain"),
    ],
}
_TITLES = {
    "scores": "Scores",
    "episodes": "Return by episode of the trial",
    "differences": "Differences from the baseline",
    "aggregate": "Over all environments",
    "diagnosis": "Diagnosis",
    "belief": "Beside the exact belief",
    "regression": "Predictions of functions",
    "posthoc": "A posterior put on afterwards",
    "cost": "What training took",
}
# Of fewer runs an interquartile mean leaves none out: it is the mean
_FEWEST_OF_IQM = 4
# How actions are chosen, and what the names of the numbers end with
_MODES = {"sampled": "", "mode": "_mode"}


@dataclass(frozen=True)
class Table:
    """A table of text.

    :param title: its heading
    :param note: what it shows
    :param head: titles of the columns
    :param rows: cells of each row
    """

    title: str
    note: str
    head: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """The head and the rows in Markdown."""
        return markdown(self.head, self.rows)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown.

    :param head: titles of the columns
    :param rows: cells of each row
    """
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows])


def tables(results: dict[str, Any]) -> dict[str, Table]:
    """The tables that have something in them, by the names that markers have for them.

    :param results: what :func:`~sb3_laplace.studies.results.collect` returned
    """
    found = {
        "scores": _scores(results),
        "episodes": _episodes(results),
        "differences": _differences(results),
        "aggregate": _aggregate(results),
    }
    for name, columns in _EVALUATIONS.items():
        found[name] = _evaluation(results, name, columns)
    found["cost"] = _cost(results)
    return {name: table for name, table in found.items() if table.rows}


def insert(text: str, results: dict[str, Any]) -> str:
    """A document with each table of a study between its markers, ``<!-- begin STUDY.TABLE -->`` and ``... end ...``.

    :param text: the document
    :param results: what :func:`~sb3_laplace.studies.results.collect` returned
    :raises InputError: if the study has no such table, or a marker has no end
    """
    known = tables(results)
    prefix = f"<!-- begin {results['study']}."
    parts = text.split(prefix)
    done = parts[0]
    for part in parts[1:]:
        name, arrow, rest = part.partition(" -->")
        if not arrow or name not in known:
            raise InputError(f"there is no table for {prefix}{name[:40]} -->; known are {', '.join(known)}")
        end = f"<!-- end {results['study']}.{name} -->"
        _, found, after = rest.partition(end)
        if not found:
            raise InputError(f"{prefix}{name} --> has no {end} after it")
        done += f"{prefix}{name} -->\n{known[name].markdown()}\n{end}{after}"
    return done


def improvements(results: dict[str, Any], mode: str) -> dict[str, dict[str, Estimate]]:
    """Probability that a run is better than one of the baseline, by environment and agent.

    :param results: what :func:`~sb3_laplace.studies.results.collect` returned
    :param mode: "sampled" or "mode"
    """
    found: dict[str, dict[str, Estimate]] = {}
    for env_id, environment in results["environments"].items():
        number = f"{environment['metric']}{_MODES[mode]}"
        base = _array(values(results, results["baseline"], env_id, "return", number))
        for agent in results["agents"]:
            own = _array(values(results, agent, env_id, "return", number))
            if agent != results["baseline"] and own.size and base.size:
                one = probability_of_improvement([own], [base], environment["sign"])
                found.setdefault(env_id, {})[agent] = one
    return found


def _scores(results: dict[str, Any]) -> Table:
    rows = []
    n_seeds = Counter((run["agent"], run["environment"]) for run in results["runs"])
    statistics = {"mean": mean}
    if max(n_seeds.values()) >= _FEWEST_OF_IQM:
        statistics["IQM"] = interquartile_mean
    for env_id, environment in results["environments"].items():
        for score in _scores_of(results, env_id, environment["metric"]):
            for agent in results["agents"]:
                found = [
                    _array(values(results, agent, env_id, "return", f"{score}{suffix}")) for suffix in _MODES.values()
                ]
                if found[0].size:
                    cells = [cell(estimate(what, [one])) for one in found for what in statistics.values()]
                    rows.append([env_id, score.replace("_", " "), agent, str(found[0].size), *cells])
    head = ["environment", "score", "agent", "seeds", *(f"{mode}: {name}" for mode in _MODES for name in statistics)]
    note = "A trial's total, over the same trials for all agents, with sampled actions and by the mode of the policy."
    return Table(_TITLES["scores"], note, head, rows)


def _scores_of(results: dict[str, Any], env_id: str, metric: str) -> list[str]:
    """The task's own metric, and the return unless that is the same number (of the other sign, where it is a cost)."""
    of_runs = [run["numbers"].get("return", {}) for run in results["runs"] if run["environment"] == env_id]
    pairs = [(one.get(metric), one.get("return")) for one in of_runs]
    is_same = all(a is not None and b is not None and math.isclose(abs(a), abs(b), rel_tol=1e-4) for a, b in pairs)
    return [metric] if metric == "return" or is_same else [metric, "return"]


def _episodes(results: dict[str, Any]) -> Table:
    numbers = {number for run in results["runs"] for number in run["numbers"].get("return", {})}
    most = sum(number.startswith("return_episode_") and not number.endswith("_mode") for number in numbers)
    rows = []
    for env_id in results["environments"] if most else ():
        for agent in results["agents"]:
            for mode, suffix in _MODES.items():
                names = [f"return_episode_{i}{suffix}" for i in range(1, most + 1)]
                found = [_array(values(results, agent, env_id, "return", name)) for name in names]
                if found[0].size:
                    rows.append([env_id, agent, mode, str(found[0].size), *map(mean_cell, found)])
    head = ["environment", "agent", "actions", "seeds", *(f"episode {i}" for i in range(1, most + 1))]
    note = "Means over seeds, on the same trials for all agents, of environments whose trials have several episodes."
    return Table(_TITLES["episodes"], note, head, rows)


def _differences(results: dict[str, Any]) -> Table:
    rows = []
    better = {mode: improvements(results, mode) for mode in _MODES} if results["baseline"] else {}
    for env_id, environment in results["environments"].items() if better else ():
        for agent, _ in better["sampled"].get(env_id, {}).items():
            cells, n_pairs = [], 0
            for mode, suffix in _MODES.items():
                number = f"{environment['metric']}{suffix}"
                paired = _array(differences(results, agent, results["baseline"], env_id, number))
                n_pairs = paired.size
                cells.append(cell(estimate(mean, [paired]), "+") if n_pairs else "")
                cells.append(cell(better[mode][env_id][agent]))
            wanted = "higher" if environment["sign"] > 0 else "lower"
            score = f"{environment['metric'].replace('_', ' ')} ({wanted} is better)"
            rows.append([env_id, score, agent, str(n_pairs), *cells])
    head = [
        "environment",
        "score",
        "agent",
        "seeds",
        "sampled: difference",
        "P(better)",
        "mode: difference",
        "P(better)",
    ]
    note = (
        f"Differences from {results['baseline']} with the same seed; P(better) is the probability that a run is better "
        "than one of the baseline's, 0.5 where they are alike."
    )
    return Table(_TITLES["differences"], note, head, rows)


def _aggregate(results: dict[str, Any]) -> Table:
    rows = []
    environments = results["environments"]
    is_normalized = len(environments) > 1 and all(one["reference"] for one in environments.values())
    for agent in results["agents"] if is_normalized else ():
        strata = {mode: _normalized(results, agent, suffix) for mode, suffix in _MODES.items()}
        if all(stratum.size for stratum in strata["sampled"]):
            n = sum(stratum.size for stratum in strata["sampled"])
            cells = [cell(estimate(what, strata[mode])) for mode in _MODES for what in (mean, interquartile_mean)]
            rows.append([agent, str(n), *cells, *_improvement_over_all(results, agent, strata)])
    head = ["agent", "runs", "sampled: mean", "IQM", "mode: mean", "IQM"]
    if results["baseline"]:
        head += ["sampled: P(better)", "mode: P(better)"]
    note = "Scores on a scale of each environment's own, on which its reference values are 0 and 1."
    return Table(_TITLES["aggregate"], note, head, rows)


def _normalized(results: dict[str, Any], agent: str, suffix: str) -> list[np.ndarray]:
    """Scores of each environment on the scale of its reference values."""
    strata = []
    for env_id, environment in results["environments"].items():
        zero, one = environment["reference"]
        found = _array(values(results, agent, env_id, "return", f"{environment['metric']}{suffix}"))
        strata.append((found - zero) / (one - zero))
    return strata


def _improvement_over_all(results: dict[str, Any], agent: str, strata: dict[str, list[np.ndarray]]) -> list[str]:
    if not results["baseline"]:
        return []
    cells = []
    for mode, suffix in _MODES.items():
        base = _normalized(results, results["baseline"], suffix)
        is_compared = agent != results["baseline"] and all(stratum.size for stratum in base)
        cells.append(cell(probability_of_improvement(strata[mode], base)) if is_compared else "")
    return cells


def _evaluation(results: dict[str, Any], name: str, columns: Sequence[tuple[str, str]]) -> Table:
    rows = []
    for env_id in results["environments"]:
        for agent in results["agents"]:
            found = [_array(values(results, agent, env_id, name, number)) for _, number in columns]
            if any(one.size for one in found):
                rows.append([env_id, agent, str(max(one.size for one in found)), *map(mean_cell, found)])
    note = "Means over seeds; - where an agent has no such number (a point has no width)."
    return Table(_TITLES[name], note, ["environment", "agent", "seeds", *(title for title, _ in columns)], rows)


def _cost(results: dict[str, Any]) -> Table:
    rows = []
    for env_id in results["environments"]:
        for agent in results["agents"]:
            runs = [run for run in results["runs"] if (run["agent"], run["environment"]) == (agent, env_id)]
            # What was made from another row's agents was not trained, and has no memory of its own
            runs = [run for run in runs if run.get("peak_memory")]
            if runs:
                steps = sum(run["steps"] for run in runs)
                seconds = sum(run["seconds"] for run in runs)
                memory = max(run["peak_memory"] for run in runs)
                numbers = (steps / len(runs), seconds / len(runs), steps / seconds, memory)
                # Of every seed the same; a results file of an older version has none
                sizes = (runs[0].get(name) for name in ("parameters", "covariance_parameters"))
                cells = [*(f"{number:,.0f}" for number in numbers), *("-" if n is None else f"{n:,}" for n in sizes)]
                rows.append([env_id, agent, str(len(runs)), *cells])
    head = ["environment", "agent", "seeds", "steps", "seconds", "steps a second", "peak memory, MB"]
    head += ["parameters", "for the covariance"]
    note = (
        "Means over seeds, of the memory the most: whole processes with one thread, beside what else ran there. "
        "Parameters of the policy, and those of them that only the posterior's covariance has."
    )
    return Table(_TITLES["cost"], note, head, rows)


def _array(by_seed: dict[int, float]) -> np.ndarray:
    return np.array(list(by_seed.values()), dtype=np.float64)


def mean_cell(found: np.ndarray, sign: str = "") -> str:
    """Mean over seeds and its interval, as :func:`cell` has them; - if there are none.

    :param found: the numbers, shape (n_seeds,)
    :param sign: "+" to show the sign of positive numbers too
    """
    return cell(estimate(mean, [found]), sign) if found.size else "-"


def cell(one: Estimate, sign: str = "") -> str:
    """``value [low, high]``; the value alone where there is no interval.

    :param one: the value and its interval
    :param sign: "+" to show the sign of positive numbers too
    """
    numbers = [one.value] if math.isnan(one.low) else list(one)
    texts = [f"{number:{sign},.0f}" if abs(number) >= 1e4 else f"{number:{sign}.3g}" for number in numbers]
    return texts[0] if len(texts) == 1 else f"{texts[0]} [{texts[1]}, {texts[2]}]"
