"""Writes the numbers of docs/results.md and of the pages below: ``python docs/figures/make_results.py``, at once.

They are those of docs/results/*.json, which the studies' reports write. Run it after those.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

DOCS = Path(__file__).parent.parent
sys.path[:0] = [str(DOCS.parent / "examples"), str(DOCS / "figures")]

from belief_study import NAMES, Results, cell, insert  # noqa: E402
from consistency import KL_COEFS  # noqa: E402
from paper_tables import findings  # noqa: E402
from study_tables import memories  # noqa: E402

from sb3_laplace.studies.results import values  # noqa: E402
from sb3_laplace.studies.tables import markdown  # noqa: E402

#: Variants of the study of beliefs that are shown here
VARIANTS = ("base", "k0", "gru", "full", "calibrated")
#: Columns: title, name of the number, format
BELIEF_COLUMNS = (
    ("R² of the mean", "r2", ".3f"),
    ("claimed/exact variance", "claimed_ratio", ".2f"),
    ("nats lost in all", "lost", ".2f"),
    ("by the mean", "lost_by_mean", ".2f"),
    ("by the width", "lost_by_width", ".2f"),
    ("regret, mode", "regret_mode", ".2f"),
)
POINT_ROBOT = "sb3_laplace/PointRobot-v0"


def load(name: str) -> Any:
    """Results of a study."""
    return json.loads((DOCS / "results" / f"{name}.json").read_text(encoding="utf-8"))


def belief() -> str:
    """What variants of the bandit's agent lose of the exact belief."""
    results = Results(load("belief"))
    rows = []
    for variant in VARIANTS:
        n = len(results.values(variant, "r2"))
        numbers = [cell(list(results.values(variant, key).values()), form) for _, key, form in BELIEF_COLUMNS]
        rows.append([NAMES[variant], str(n), *numbers])
    return markdown(["agent", "seeds", *(title for title, _, _ in BELIEF_COLUMNS)], rows)


def consistency() -> str:
    """Moved over claimed, and returns, with a fixed and with a learned coefficient."""
    results = load("consistency")
    rows = []
    for task in dict.fromkeys(name.split("-")[0] for name in results):
        for kl in KL_COEFS:
            of_seeds = [numbers["sampled"] for name, numbers in results.items() if name.startswith(f"{task}-{kl}-")]
            ratios = [
                f"{np.exp(np.mean([np.log(one[f'moved_to_claimed{part}']) for one in of_seeds])):#.3g}"
                for part in ("", "_early", "_middle", "_late")
            ]
            rows.append([task, kl, str(len(of_seeds)), *ratios, cell([one["return"] for one in of_seeds], ".2f")])
    return markdown(["task", "`kl_coef`", "seeds", "moved/claimed", "early", "middle", "late", "return, sampled"], rows)


def episodes(study: str, environment: str, n_episodes: int) -> str:
    """Returns of a trial's episodes, agents acting as in training."""
    document = load(study)
    rows = []
    for agent in document["agents"]:
        names = [f"return_episode_{i + 1}" for i in range(n_episodes)]
        returns = [list(values(document, agent, environment, "return", name).values()) for name in names]
        if returns[0]:
            rows.append([agent, str(len(returns[0])), *(cell(one, ".1f") for one in returns)])
    return markdown(["agent", "seeds", *(f"episode {i + 1}" for i in range(n_episodes))], rows)


def point_robot_belief() -> str:
    """How overconfident the Laplace agent's belief about the goal is."""
    found = values(load("continuous"), "laplace", POINT_ROBOT, "diagnosis", "overconfidence.moved_to_claimed")
    ratios = found.values()
    return (
        f"The Laplace agent's belief about the goal moves {min(ratios):.0f} to {max(ratios):.0f} times as much as its "
        f"precision claims ({len(ratios)} seeds)."
    )


def parts() -> dict[str, str]:
    """All that is inserted into docs/results.md, by its markers."""
    return {
        "results.belief": belief(),
        "results.consistency": consistency(),
        "results.point_robot": episodes("continuous", POINT_ROBOT, 3),
        "results.point_robot_belief": point_robot_belief(),
        "results.sparse": episodes("continuous_sparse", POINT_ROBOT, 3),
        "results.cheetah": episodes("continuous_cheetah", "sb3_laplace/HalfCheetahVel-v0", 2),
    }


def pages() -> dict[str, dict[str, str]]:
    """All that is inserted, by the page's path and its markers."""
    return {
        "results.md": parts(),
        "memories.md": memories({name: load(name) for name in ("cores", "cores_control", "popgym_study")}),
        "results/paper.md": findings(load("paper-small")),
    }


if __name__ == "__main__":
    for path, found in pages().items():
        page = DOCS / path
        page.write_text(insert(page.read_text(encoding="utf-8"), found), encoding="utf-8")
