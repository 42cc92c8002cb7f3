"""One self-contained HTML file that shows what an agent's posterior does, and the verdict on it."""

import html
import os
from collections.abc import Mapping
from typing import Any

from sb3_laplace.evaluation.belief_evaluation import BeliefEvaluation
from sb3_laplace.evaluation.diagnostics import Diagnosis
from sb3_laplace.evaluation.traces import PosteriorTrace
from sb3_laplace.version import __version__

#: Style sheet of a page that stands alone
STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: #1a1a1a; background: #fff;
  margin: 0 auto; max-width: 1180px; padding: 1rem; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0.5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 0.75rem; }
p { max-width: 46rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.93rem; }
th, td { text-align: left; vertical-align: top; padding: 0.5rem 0.75rem 0.5rem 0; border-bottom: 1px solid #ddd; }
th { font-weight: 600; }
td { overflow-wrap: anywhere; min-width: 9.5rem; }
.verdict { display: inline-block; padding: 0.05rem 0.5rem; border-radius: 0.6rem; font-weight: 600;
  background: #e8e8e8; }
.good { background: #d5efe2; color: #0b4f33; }
.bad { background: #fbe0d3; color: #7a2c05; }
.numbers { color: #555; font-size: 0.85rem; font-variant-numeric: tabular-nums; margin-top: 0.25rem; }
.numbers span { display: inline-block; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); gap: 1.5rem; }
.examples { grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 560px)); }
pre { overflow-x: auto; font-size: 0.85rem; }
figure { margin: 0; }
figure img { width: 100%; height: auto; display: block; }
figcaption { font-size: 0.85rem; color: #444; margin-top: 0.25rem; }
footer { margin: 2rem 0 1rem; color: #666; font-size: 0.85rem; }
"""
_GOOD = {"yes", "falls and levels off", "consistent", "calibrated"}
_BAD = {"no", "does not fall", "inconsistent", "overconfident", "underconfident"}

#: Name of the function of :mod:`sb3_laplace.plots.traces`, title and caption of each plot that shows all agents
_PLOTS = (
    (
        "performance",
        "Cumulative regret, or reward",
        "What the agent loses against always acting best, summed from the trial's start (flat once it has learned its "
        "task); the reward of each step where no regret is known.",
    ),
    (
        "episodes",
        "Return by episode",
        "The return of each episode of a trial. An agent that has found out its task does better in later ones.",
    ),
    ("entropy", "Entropy", "How wide the belief is. A Markov posterior's entropy can only fall."),
    (
        "kl_mean",
        "KL between successive posteriors: mean part",
        "How far the mean moves at each step, in standard deviations. It should go down as evidence adds up.",
    ),
    (
        "kl_covariance",
        "KL between successive posteriors: covariance part",
        "How much the shape of the belief changes at each step.",
    ),
    (
        "moves",
        "Moved and claimed",
        "How far the mean moves, and how far it would if the precision were right: in the linear read-out of the task "
        "where all agents have one (moved above claimed: overconfident; below: underconfident), else in the whole "
        "latent, which also holds what is no task.",
    ),
    (
        "calibration",
        "Calibration of the policy",
        "Of discrete actions: how often the action taken was the best, by the probability that the policy gave it "
        "(larger dots: more steps). On the dotted line the policy is as sure as it is right. Of predictions: where "
        "their targets fall among them; flat if they are calibrated, U-shaped if overconfident.",
    ),
    ("action_entropy", "Entropy of the actions", "How much the agent still explores."),
    ("jacobian_norm", "Norm of the Jacobian", "How much each step adds to the precision."),
)

_CALIBRATION = (
    "<h2>Calibration</h2><p>Prior and noise were fitted to other trials, of which these are the ratios. They cannot "
    "give the ratio any shape within a trial: read the thirds.</p>"
)


def write_report(
    path: str | os.PathLike,
    traces: Mapping[str, PosteriorTrace],
    diagnoses: Mapping[str, Diagnosis],
    beliefs: Mapping[str, BeliefEvaluation] | None = None,
    calibration: str | None = None,
) -> None:
    """Write the verdicts and plots of one or several agents into one HTML file.

    Plots are embedded, there are no scripts, and nothing is loaded from elsewhere.

    :param path: the file
    :param traces: traces by the agents' names
    :param diagnoses: diagnoses by the same names
    :param beliefs: evaluations of :func:`~sb3_laplace.evaluate_belief` by the same names, where the task has an oracle
    :param calibration: the table of a calibration, if one of the agents is another calibrated
    :raises ImportError: if matplotlib is not installed
    """
    try:
        from sb3_laplace.plots import traces as plots
    except ImportError as error:
        raise ImportError("A report needs matplotlib: pip install 'sb3-laplace[plots]'.") from error
    parts = []
    for name, title, caption in _PLOTS:
        figure = getattr(plots, name)(traces)
        if figure is not None:
            parts.append(figure_html(title, caption, plots.to_data_uri(figure)))
    figure = plots.ratios(diagnoses)
    if figure is not None:
        title = "Moved over claimed, by part of a trial"
        caption = "On the dotted line a posterior moves as much as it claims to; bars are confidence intervals."
        parts.append(figure_html(title, caption, plots.to_data_uri(figure)))
    examples = []
    for name, trace in traces.items():
        figure = plots.example_trials(trace)
        if figure is not None:
            title = "Example trials" if len(traces) == 1 else f"Example trials: {name}"
            caption = (
                "The posterior projected on the two leading axes of its means: a point for each mean, from the "
                "square on; ellipses of one standard deviation at steps ever further apart (hard to see if the belief "
                "moves by many of them)."
            )
            examples.append(figure_html(title, caption, plots.to_data_uri(figure)))
    names = ", ".join(traces)
    page = "\n".join(
        (
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(names)}: posterior report</title>",
            f"<style>{STYLE}</style></head><body>",
            f"<h1>{html.escape(names)}</h1>",
            f"<p>{html.escape(_summary(traces))}</p>",
            "<h2>Verdict</h2>",
            _verdicts(diagnoses),
            *([] if calibration is None else [_CALIBRATION, f"<pre>{html.escape(calibration)}</pre>"]),
            "<h2>Within a trial</h2>",
            "<p>Lines are means over trials, bands the middle half of the trials.</p>",
            f'<div class="plots">{"".join(parts)}</div>',
            *(
                ["<h2>Example trials</h2>", f'<div class="plots examples">{"".join(examples)}</div>']
                if examples
                else []
            ),
            *(_beliefs(beliefs) if beliefs else []),
            "<h2>Settings</h2>",
            _settings(traces),
            f"<footer>sb3-laplace {html.escape(__version__)}</footer>",
            "</body></html>\n",
        )
    )
    with open(path, "w", encoding="utf-8") as file:
        file.write(page)


def _summary(traces: Mapping[str, PosteriorTrace]) -> str:
    first = next(iter(traces.values()))
    env = first.settings.get("env", "an unnamed environment")
    played = ", ".join(
        f"{trace.complete.sum()} trials"
        + (" (interrupted)" if trace.interrupted else "")
        + ("" if len(traces) == 1 else f" of {name}")
        for name, trace in traces.items()
    )
    return f"{played[0].upper()}{played[1:]}, of up to {max(t.n_steps for t in traces.values())} steps each, on {env}."


def _verdicts(diagnoses: Mapping[str, Diagnosis]) -> str:
    """The verdicts as a table, a row for each question and a column for each agent."""
    names = list(diagnoses)
    first = diagnoses[names[0]]
    head = "".join(
        f"<th>{html.escape(name)}</th>" for name in ("Question", *(names if len(names) > 1 else ("Verdict",)))
    )
    rows = []
    # Only trials of several episodes are asked about them
    questions = {key: finding.question for one in diagnoses.values() for key, finding in one.findings.items()}
    for key, question in questions.items():
        cells = "".join(f"<td>{_verdict(diagnoses[name], key)}</td>" for name in names)
        rows.append(f"<tr><td>{html.escape(question)}</td>{cells}</tr>")
    level = f"{100 * first.confidence_level:g}%"
    note = f"In brackets: {level} confidence intervals (bootstrap over trials)."
    notes = "".join(
        f"<p>{html.escape(text if len(names) == 1 else f'{name}: {text}')}</p>"
        for name, diagnosis in diagnoses.items()
        for text in diagnosis.notes
    )
    table = f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'
    return f'{table}<p class="numbers">{note}</p>{notes}'


def _verdict(diagnosis: Diagnosis, key: str) -> str:
    finding = diagnosis.findings.get(key)
    if finding is None:
        return ""
    kind = "good" if finding.verdict in _GOOD else "bad" if finding.verdict in _BAD else ""
    numbers = "<br>".join(
        f"<span>{html.escape(name.replace('_', ' '))}:&nbsp;</span><span>{number}</span>"
        for name, number in finding.numbers.items()
        if str(number) != "-"
    )
    return (
        f'<span class="verdict {kind}">{html.escape(finding.verdict)}</span><div>{html.escape(finding.meaning)}</div>'
        f'<div class="numbers">{numbers}</div>'
    )


def _beliefs(beliefs: Mapping[str, BeliefEvaluation]) -> list[str]:
    """A section with a figure of all agents, and the table of each.

    :param beliefs: by the agents' names, at least one
    """
    from sb3_laplace.plots.belief import plot_belief
    from sb3_laplace.plots.traces import to_data_uri

    caption = (
        "How much of the exact posterior's mean a linear read-out of the agent's mean explains; how wide its belief "
        "about the task is, with what the read-out cannot explain (R) and without; and how often its regions hold the "
        "true task. Dashed: the exact belief, after the same observations."
    )
    tables = (
        (f"<h3>{html.escape(name)}</h3>" if len(beliefs) > 1 else "")
        + f'<div class="scroll"><pre>{html.escape(belief.table())}</pre></div>'
        for name, belief in beliefs.items()
    )
    return [
        "<h2>Beside the exact belief</h2>",
        figure_html("Belief about the task", caption, to_data_uri(plot_belief(beliefs))),
        *tables,
    ]


def _settings(traces: Mapping[str, PosteriorTrace]) -> str:
    """The settings as a table, a column for each agent."""
    names = list(traces)
    keys = list(dict.fromkeys(key for trace in traces.values() for key in trace.settings))
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("", *names))
    rows = "".join(
        f"<tr><th>{html.escape(key.replace('_', ' '))}</th>"
        + "".join(f"<td>{html.escape(_text(traces[name].settings.get(key)))}</td>" for name in names)
        + "</tr>"
        for key in keys
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{rows}</table></div>'


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={item}" for key, item in value.items()) or "default"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


def figure_html(title: str, caption: str, source: str) -> str:
    """A figure with its caption as HTML.

    :param title: its title, text
    :param caption: what it shows, text
    :param source: the image, a data URI
    """
    title, caption = html.escape(title), html.escape(caption)
    return (
        f'<figure><img src="{source}" alt="{title}. {caption}">'
        f"<figcaption><b>{title}.</b> {caption}</figcaption></figure>"
    )
