"""The report of a study: tables and figures of its results, in a folder of its own and in a documentation."""

import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sb3_laplace.errors import InputError
from sb3_laplace.evaluation.bootstrap import Estimate
from sb3_laplace.studies.results import values, write_csv
from sb3_laplace.studies.runs import write_json
from sb3_laplace.studies.statistics import estimate, mean
from sb3_laplace.studies.tables import Table, improvements, insert, tables
from sb3_laplace.version import __version__

_CURVES = "learning curves"
_CAPTIONS = {
    _CURVES: "Return of the episodes of training, with sampled actions: means over seeds of episodes that ended in the "
    "same fortieth of the steps, bands 95% bootstrap intervals of the mean.",
    "scores": "A dot for each seed, the mean and its 95% bootstrap interval.",
    "probability of improvement": "The probability that a run is better than one of the baseline's, with its 95% "
    "bootstrap interval; on the dotted line they are alike.",
}
_METHOD = (
    "In brackets: 95% stratified bootstrap intervals over seeds (percentiles of 2000 resamples). They are too narrow "
    "where seeds are few: of three seeds' they hold the true mean 75% of the time, of ten seeds' 90%. IQM: the mean of "
    "the middle half of the runs, a quarter of their number rounded down left out at each end."
)


def write_report(results: dict[str, Any], folder: Path) -> list[Path]:
    """Write report.md, report.html (self-contained), scores.csv, results.json and the figures as PNG.

    :param results: what :func:`~sb3_laplace.studies.results.collect` returned
    :param folder: the folder, made if it is missing
    :return: the files
    :raises InputError: if the folder cannot be written to
    """
    figures = _figures(results)
    files = {name: folder / f"{name.replace(' ', '-')}.png" for name in figures}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            figure.savefig(files[name], dpi=100)
        write_csv(results, folder / "scores.csv")
        write_json(folder / "results.json", results)
        (folder / "report.md").write_text(_markdown(results, files), encoding="utf-8")
        (folder / "report.html").write_text(_page(results, figures), encoding="utf-8")
    except OSError as error:
        raise InputError(f"the report cannot be written: {error}") from error
    names = ("report.md", "report.html", "scores.csv", "results.json")
    return [*(folder / name for name in names), *files.values()]


def write_docs(results: dict[str, Any], docs: Path) -> list[Path]:
    """Write the results beside a documentation, and their tables into it.

    :param results: what :func:`~sb3_laplace.studies.results.collect` returned
    :param docs: a folder of Markdown documents, of which one or more have markers for tables of this study
    :return: the files
    :raises InputError: if there is no such folder or marker, a marker names no table, or one has no end
    """
    name = results["study"]
    documents = {path: path.read_text("utf-8") for path in sorted(docs.rglob("*.md"))}
    documents = {path: text for path, text in documents.items() if f"<!-- begin {name}." in text}
    if not documents:
        markers = f"<!-- begin {name}.TABLE --> and <!-- end {name}.TABLE -->"
        known = ", ".join(tables(results))
        raise InputError(f"--docs: no *.md in {str(docs)!r} has {markers}, where TABLE is one of {known}")
    changed = {}
    for path, text in documents.items():
        try:
            changed[path] = insert(text, results)
        except InputError as error:
            raise InputError(f"--docs: {path}: {error}") from error
    document = docs / "results" / f"{name}.json"
    figures = {docs / f"{name}-{title.replace(' ', '-')}.png": figure for title, figure in _figures(results).items()}
    try:
        document.parent.mkdir(exist_ok=True)
        document.write_text(_lines(results), encoding="utf-8")
        for path, figure in figures.items():
            figure.savefig(path, dpi=100)
        for path, text in changed.items():
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"--docs: {error}") from error
    return [document, *changed, *figures]


def stale_documents(results: dict[str, Any], docs: Path) -> list[Path]:
    """Documents of a folder, and of those in it, whose tables are not those of the results.

    :param results: what a file that :func:`write_docs` wrote holds
    :param docs: the folder
    :raises InputError: as :func:`write_docs` does of markers
    """
    return [path for path in sorted(docs.rglob("*.md")) if insert(text := path.read_text("utf-8"), results) != text]


def _lines(results: Mapping[str, Any]) -> str:
    """JSON with a run on a line, so that what changes can be seen."""
    parts = []
    for key, value in results.items():
        text = "[\n" + ",\n".join(map(json.dumps, value)) + "\n]" if key == "runs" else json.dumps(value)
        parts.append(f"{json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


# -- what is shown -------------------------------------------------------------------------------------------


def _figures(results: dict[str, Any]) -> dict[str, Any]:
    """By title, figures of matplotlib, which is optional."""
    try:
        from sb3_laplace.plots import study as plots
    except ModuleNotFoundError as error:
        raise InputError('study report needs matplotlib: pip install "sb3-laplace[study]"') from error
    found = {}
    if results["curves"]:
        found[_CURVES] = plots.plot_learning_curves(results["curves"])
    if scores := _panels(results):
        found["scores"] = plots.plot_scores(scores)
    if results["baseline"] and (better := improvements(results, "mode")):
        found["probability of improvement"] = plots.plot_improvements(better)
    return found


def _panels(results: dict[str, Any]) -> dict[str, dict[str, tuple[list[float], Estimate]]]:
    """Scores with sampled actions and by the mode, of each environment, by agent."""
    panels: dict[str, dict[str, tuple[list[float], Estimate]]] = {}
    for env_id, environment in results["environments"].items():
        for suffix, mode in (("", "sampled"), ("_mode", "mode")):
            title = f"{env_id}: {environment['metric'].replace('_', ' ')}, {mode}"
            for agent in results["agents"]:
                own = list(values(results, agent, env_id, "return", f"{environment['metric']}{suffix}").values())
                if own:
                    panels.setdefault(title, {})[agent] = (own, estimate(mean, [np.array(own)]))
    return panels


def _summary(results: dict[str, Any]) -> str:
    seeds = sorted({run["seed"] for run in results["runs"]})
    text = (
        f"{len(results['runs'])} of {results['n_runs']} runs are finished: {len(results['agents'])} agents on "
        f"{len(results['environments'])} environments, seeds {', '.join(map(str, seeds))}."
    )
    return f"{text} The baseline is {results['baseline']}." if results["baseline"] else text


def _origin(results: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    commits = f" Commits: {', '.join(results['commits'])}." if results["commits"] else ""
    return f"Made with {versions}.{commits}"


def _markdown(results: dict[str, Any], figures: Mapping[str, Path]) -> str:
    parts = [f"# {results['study']}", _summary(results), _METHOD]
    for table in tables(results).values():
        parts += [f"## {table.title}", table.note, table.markdown()]
    parts.append("## Figures")
    parts += [f"![{name}]({path.name})\n\n{_CAPTIONS[name]}" for name, path in figures.items()]
    return "\n\n".join([*parts, _origin(results)]) + "\n"


def _page(results: dict[str, Any], figures: Mapping[str, Any]) -> str:
    from sb3_laplace.plots.report import STYLE, figure_html
    from sb3_laplace.plots.traces import to_data_uri

    title = html.escape(results["study"])
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}: study</title>",
        f"<style>{STYLE}</style></head><body>",
        f"<h1>{title}</h1>",
        f"<p>{html.escape(_summary(results))}</p>",
        f"<p>{html.escape(_METHOD)}</p>",
    ]
    parts += [_section(table) for table in tables(results).values()]
    parts += [figure_html(name.capitalize(), _CAPTIONS[name], to_data_uri(figure)) for name, figure in figures.items()]
    parts.append("<h2>Runs</h2>")
    parts.append(_html(["agent", "environment", "seed", "steps", "seconds of training"], _run_rows(results)))
    parts.append(f"<p>{html.escape(_origin(results))}</p>")
    parts.append(f"<footer>sb3-laplace {html.escape(__version__)}</footer></body></html>")
    return "\n".join(parts) + "\n"


def _run_rows(results: dict[str, Any]) -> list[list[str]]:
    names = ("agent", "environment", "seed", "steps", "seconds")
    return [[str(run[name]) for name in names] for run in results["runs"]]


def _section(table: Table) -> str:
    return f"<h2>{html.escape(table.title)}</h2><p>{html.escape(table.note)}</p>{_html(table.head, table.rows)}"


def _html(head: list[str], rows: list[list[str]]) -> str:
    titles = "".join(f"<th>{html.escape(title)}</th>" for title in head)
    lines = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{titles}</tr>{lines}</table></div>'
