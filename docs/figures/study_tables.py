"""Tables of docs/memories.md, from what the studies of memories found; make_results.py writes them."""

from typing import Any

import numpy as np

from sb3_laplace.studies.results import values
from sb3_laplace.studies.tables import markdown, mean_cell

#: Memories by the names that the studies have for them
MEMORIES = {"lstm": "LSTM", "gru": "GRU", "mingru": "minGRU", "gtrxl": "attention"}
#: Rows: study, environment, evaluation, number, what it is
SCORES = (
    ("cores", "sb3_laplace/DirichletBandit-v0", "return", "regret", "bandit, regret after 50 pulls (less is better)"),
    ("cores", "sb3_laplace/GridNavigation-v0", "return", "goals_reached", "grid, goals in 100 steps"),
    ("cores", "sb3_laplace/FourierRegression-v0", "regression", "mse.train.5", "regression, error after 5 pairs"),
    ("cores", "sb3_laplace/FourierRegression-v0", "regression", "mse.train.10", "after 10"),
    ("cores", "sb3_laplace/FourierRegression-v0", "regression", "mse.train.30", "after 30"),
    ("cores_control", "CartPoleNoVel-v1", "return", "return_mode", "CartPoleNoVel, return, mode"),
    ("cores_control", "PendulumNoVel-v1", "return", "return_mode", "PendulumNoVel, return, mode"),
    ("popgym_study", "popgym_trials/RepeatPreviousEasy-v0", "return", "return", "popgym RepeatPreviousEasy, return"),
    (
        "popgym_study",
        "popgym_trials/MultiarmedBanditEasy-v0",
        "return",
        "return",
        "popgym MultiarmedBanditEasy, return",
    ),
)
#: Tasks that report a task, whose belief the diagnosis is about
TASKS = {
    "sb3_laplace/DirichletBandit-v0": "bandit",
    "sb3_laplace/GridNavigation-v0": "grid",
    "sb3_laplace/FourierRegression-v0": "regression",
}

#: Numbers of the diagnosis, three of them ratios
DIAGNOSIS = (
    *(f"overconfidence.moved_to_claimed{part}" for part in ("", "_early", "_late")),
    "entropy.nats_per_step_early",
    "consistency.mean_part_ratio",
)

Studies = dict[str, dict[str, Any]]


def scores(studies: Studies) -> str:
    """How well each memory does on each task, acting as in training but where the row says otherwise."""
    rows = []
    for study, env_id, evaluation, number, title in SCORES:
        found = [values(studies[study], name, env_id, evaluation, number) for name in MEMORIES]
        means = [mean_cell(np.array(list(one.values()))) for one in found]
        rows.append([title, str(min(map(len, found))), *means])
    return markdown(["task", "seeds", *MEMORIES.values()], rows)


def cost(studies: Studies) -> str:
    """Steps a second of whole trainings, and the most memory that one took."""
    rows = []
    for document in studies.values():
        for env_id in document["environments"]:
            cells = []
            for name in MEMORIES:
                runs = [run for run in document["runs"] if (run["agent"], run["environment"]) == (name, env_id)]
                speed = sum(run["steps"] for run in runs) / sum(run["seconds"] for run in runs)
                cells.append(f"{speed:,.0f}; {max(run['peak_memory'] for run in runs):.0f}")
            rows.append([env_id.rpartition("/")[2], *cells])
    return markdown(["environment", *MEMORIES.values()], rows)


def diagnosis(studies: Studies) -> str:
    """What a Laplace posterior claims that is put on the point agents afterwards."""
    rows = []
    for env_id, task in TASKS.items():
        for name, title in MEMORIES.items():
            *moved, entropy, settles = (
                list(values(studies["cores"], f"{name}-after", env_id, "diagnosis", number).values())
                for number in DIAGNOSIS
            )
            rows.append([task, title, str(len(moved[0])), *map(ratios, moved), spread(entropy), spread(settles)])
    head = ["task", "memory", "seeds", "moved/claimed", "early", "late", "entropy, nats a step early"]
    return markdown([*head, "KL's mean part, late/early"], rows)


def ratios(found: list[float]) -> str:
    """Geometric mean of ratios, and the smallest and largest of them."""
    center = np.exp(np.mean(np.log(found)))
    # With two digits, and without exponents
    texts = (f"{ratio:.0f}" if ratio >= 99.5 else f"{ratio:.2g}" for ratio in (center, min(found), max(found)))
    return "{} ({} to {})".format(*texts)


def spread(found: list[float]) -> str:
    """Mean, and the smallest and largest."""
    return f"{np.mean(found):.2g} ({min(found):.2g} to {max(found):.2g})"


def memories(studies: Studies) -> dict[str, str]:
    """All tables of the page, by their markers.

    :param studies: results of the studies "cores", "cores_control" and "popgym_study", by name
    """
    return {
        "memories.scores": scores(studies),
        "memories.cost": cost(studies),
        "memories.diagnosis": diagnosis(studies),
    }
