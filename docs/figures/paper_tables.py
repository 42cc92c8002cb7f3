"""Tables of docs/results/paper.md, from what the study of the paper's findings found; make_results.py writes them."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from study_tables import TASKS, ratios

from sb3_laplace.studies.results import differences, values
from sb3_laplace.studies.tables import markdown, mean_cell

METRICS = {"regret": "regret", "goals_reached": "goals", "squared_error": "squared error"}
#: Posteriors that agents are trained with
TRAINED = {
    "point": "point (RL²)",
    "laplace-diagonal": "Laplace, diagonal",
    "laplace-full": "Laplace, full",
    "variational": "variational",
    "constant-variance": "constant variance",
    "laplace-auto": 'Laplace, diagonal, `kl_coef="auto"`',
}
#: Posteriors put on the point agents afterwards: what is summed
AFTER = {
    "after-step": "nothing",
    "after-summed-means": "means",
    "after-summed-precisions": "precisions",
    "after-both-summed": "both",
    "after-stationary": "precisions, anew at each state",
    "after-window-10": "the same of the last 10 inputs",
    "after-normalized": "the same, divided by their number",
    "after-summed-precisions-full": "precisions, full covariance",
}
#: Agents whose overconfidence is shown
JUDGED = {
    "after-summed-precisions": "point, diagonal afterwards",
    "after-summed-precisions-full": "point, full afterwards",
    "laplace-diagonal": TRAINED["laplace-diagonal"],
    "laplace-auto": TRAINED["laplace-auto"],
}
#: Numbers of the diagnosis: how fast the posterior narrows, and what of the KL is left late in a trial
ENTROPY = ("entropy.nats_per_step_early", "entropy.nats_per_step_late")
KL = ("consistency.mean_part_ratio", "consistency.covariance_part_ratio")

Document = dict[str, Any]


def findings(document: Document) -> dict[str, str]:
    """All tables of the page, by their markers.

    :param document: results of the study
    """
    return {
        "paper.settles": settles(document),
        "paper.competitive": competitive(document),
        "paper.summed": summed(document),
        "paper.overconfident": overconfident(document),
        "paper.variational": variational(document),
    }


def settles(document: Document) -> str:
    """Entropy and KL within a trial, of the posteriors that agents are trained with."""
    rows = [
        [task, TRAINED[agent], *_seeds_and_means(document, agent, env_id, "diagnosis", (*ENTROPY, *KL))]
        for env_id, task in TASKS.items()
        for agent in TRAINED
        if agent != "point"
    ]
    head = ["task", "posterior", "seeds", "entropy, nats a step early", "late"]
    return markdown([*head, "KL late/early, mean part", "covariance part"], rows)


def competitive(document: Document) -> str:
    """Scores of the posteriors that agents are trained with, and paired differences from the point."""
    rows = []
    for env_id, task in TASKS.items():
        metric = document["environments"][env_id]["metric"]
        for agent, title in TRAINED.items():
            row = [f"{task}, {METRICS[metric]}", title]
            for number in (metric, f"{metric}_mode"):
                own = values(document, agent, env_id, "return", number)
                less = "" if agent == "point" else _difference(document, agent, "point", env_id, number)
                row += [_interval(own.values()), less]
            rows.append([*row[:2], str(len(own)), *row[2:]])
    return markdown(["task", "posterior", "seeds", "sampled", "less the point's", "mode", "less the point's"], rows)


def summed(document: Document) -> str:
    """Posteriors put on the point agents afterwards: what changes with what is summed."""
    rows = []
    for env_id, task in TASKS.items():
        number = f"{document['environments'][env_id]['metric']}_mode"
        for agent, title in AFTER.items():
            diagnosis = _seeds_and_means(document, agent, env_id, "diagnosis", (*ENTROPY, KL[0]))
            _, *belief = _belief(document, agent, env_id)
            rows.append([task, title, *diagnosis, *belief, _difference(document, agent, "point", env_id, number)])
    head = ["task", "summed", "seeds", "entropy, nats a step early", "late", "KL late/early, mean part"]
    head += ["R² of the read-out", "claimed/exact variance", "nats lost", "score by the mode, less the point's"]
    return markdown(head, rows)


def overconfident(document: Document) -> str:
    """Moved over claimed, of point agents afterwards and of agents trained with a posterior."""
    rows = []
    for env_id, task in TASKS.items():
        for agent, title in JUDGED.items():
            moved = [
                list(values(document, agent, env_id, "diagnosis", f"overconfidence.moved_to_claimed{part}").values())
                for part in ("", "_early", "_middle", "_late")
            ]
            settling = values(document, agent, env_id, "diagnosis", KL[0])
            rows.append([task, title, str(len(moved[0])), *map(ratios, moved), _interval(settling.values())])
    head = ["task", "agent", "seeds", "moved/claimed", "early", "middle", "late", "KL late/early, mean part"]
    return markdown(head, rows)


def variational(document: Document) -> str:
    """Laplace beside the variational posterior: scores, belief, and parameters."""
    rows = []
    for env_id, task in TASKS.items():
        metric = document["environments"][env_id]["metric"]
        for agent in ("variational", "laplace-diagonal", "laplace-full"):
            less = "" if agent == "variational" else _difference(document, agent, "variational", env_id, metric)
            n_seeds, *belief = _belief(document, agent, env_id)
            run = next(one for one in document["runs"] if (one["agent"], one["environment"]) == (agent, env_id))
            sizes = [f"{run[name]:,}" for name in ("parameters", "covariance_parameters")]
            rows.append([f"{task}, {METRICS[metric]}", TRAINED[agent], n_seeds, less, *belief, *sizes])
    head = ["task", "posterior", "seeds", "sampled, less the variational's", "R² of the read-out"]
    head += ["claimed/exact variance", "nats lost", "parameters", "for the covariance"]
    return markdown(head, rows)


def _seeds_and_means(
    document: Document, agent: str, env_id: str, evaluation: str, numbers: tuple[str, ...]
) -> list[str]:
    """How many seeds there are, then each number's mean and interval."""
    found = [values(document, agent, env_id, evaluation, number).values() for number in numbers]
    return [str(max(map(len, found))), *map(_interval, found)]


def _belief(document: Document, agent: str, env_id: str) -> list[str]:
    """How many seeds there are, then R² of the read-out, claimed over exact variance, and nats lost."""
    n_seeds, r2, lost = _seeds_and_means(document, agent, env_id, "belief", ("r2", "lost"))
    return [n_seeds, r2, _claimed_ratio(document, agent, env_id), lost]


def _claimed_ratio(document: Document, agent: str, env_id: str) -> str:
    """The task's variance as the posterior has it over the exact one's, each averaged over the steps of a trial."""
    claimed, exact = (
        values(document, agent, env_id, "belief", f"{name}_variance").values() for name in ("claimed", "exact")
    )
    return ratios([a / b for a, b in zip(claimed, exact, strict=True)]) if claimed else "-"


def _difference(document: Document, agent: str, base: str, env_id: str, number: str) -> str:
    """Mean and interval of what an agent's score is more than another's of the same seed."""
    return _interval(differences(document, agent, base, env_id, number).values(), "+")


def _interval(found: Iterable[float], sign: str = "") -> str:
    """Mean and interval over seeds, - if no run has the number."""
    numbers = np.array(list(found))
    # What does not change at all has no interval worth reading
    return "0" if numbers.size and not numbers.any() else mean_cell(numbers, sign)
