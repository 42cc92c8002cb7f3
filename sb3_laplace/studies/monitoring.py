"""Episodes of training, from the files that SB3's ``Monitor`` writes while it goes on."""

from pathlib import Path

import numpy as np


def episodes(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Episodes of all environments in the order in which they ended.

    :param folder: a folder with ``*.monitor.csv``
    :return: numbers of steps of training after each episode (of the episodes that have ended), and its return; both
        of shape (n_episodes,). A line that is still being written is left out.
    """
    rows = [row for path in sorted(folder.glob("*.monitor.csv")) for row in _rows(path)]
    if not rows:
        return np.zeros(0), np.zeros(0)
    returns, lengths, times = np.array(rows).T
    order = np.argsort(times, kind="stable")
    return lengths[order].cumsum(), returns[order]


def steps_done(folder: Path) -> int:
    """Number of steps of the episodes that have ended."""
    steps, _ = episodes(folder)
    return int(steps[-1]) if steps.size else 0


def _rows(path: Path) -> list[tuple[float, float, float]]:
    """Return, length and time of each episode."""
    lines = path.read_text("utf-8").split("\n")
    # A comment, the names of the columns, and what follows the last line's end
    names = lines[1].split(",") if len(lines) > 1 else []
    if not {"r", "l", "t"} <= set(names):
        return []
    columns = [names.index(name) for name in ("r", "l", "t")]
    rows = []
    for line in lines[2:-1]:
        cells = line.split(",")
        rows.append((float(cells[columns[0]]), float(cells[columns[1]]), float(cells[columns[2]])))
    return rows
