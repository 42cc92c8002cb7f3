"""What an agent's belief about the bandit owes to its size, cell, samples and losses, beside the exact belief.

python examples/belief_study.py train base --seed 0 [--out runs/belief]   # some minutes for each variant and seed
python examples/belief_study.py evaluate [--out runs/belief]              # all that were trained: a JSON file each
python examples/belief_study.py report [--out runs/belief]                # to docs/belief.md and the figures there
"""

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from agents import TASKS, make_agent
from matplotlib.axes import Axes
from stable_baselines3.common.callbacks import BaseCallback

from sb3_laplace import BeliefEvaluation, LaplaceRecurrentPPO, calibrate_posterior, evaluate_belief, make_vec_env
from sb3_laplace.plots.traces import COLORS, new_figure, set_log
from sb3_laplace.studies.tables import markdown

ENV_ID = TASKS["bandit"][0]
#: How an agent of each variant differs from the base: arguments of the algorithm, and keywords of the policy
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "base": ({}, {}),
    "long": ({}, {}),
    "hidden16": ({}, {"lstm_hidden_size": 16, "latent_dim": 16}),
    "hidden32": ({}, {"lstm_hidden_size": 32, "latent_dim": 32}),
    "hidden256": ({}, {"lstm_hidden_size": 256}),
    "gru": ({}, {"rnn_type": "gru"}),
    "k4": ({}, {"n_posterior_samples": 4}),
    "k0": ({}, {"n_posterior_samples": 0}),
    "reward-step": ({"reward_coef": 1.0, "decode_window": 0}, {}),
    "reward-trial": ({"reward_coef": 1.0, "decode_window": "trial"}, {}),
    "auto": ({"kl_coef": "auto"}, {}),
    "full": ({}, {"posterior_kwargs": {"prior_std": 1.0, "covariance": "full"}}),
}
#: Environment steps of training, of the variants that are not named
TIMESTEPS = 1_000_000
TIMESTEPS_OF = {"long": 4_000_000}
#: Steps after which an agent is saved besides the end, as VARIANT@STEPS-SEED.zip
SAVED_AT = {"base": (100_000, 300_000)}
#: What the tables call the agents, in their order; base after the fact is the only one that is not trained
NAMES = {
    "base": "base: LSTM 128, K = 1, diagonal",
    "base@100000": "base after 100k of its steps",
    "base@300000": "base after 300k of its steps",
    "long": "base, 4 M steps",
    "hidden16": "LSTM 16",
    "hidden32": "LSTM 32",
    "hidden256": "LSTM 256",
    "gru": "GRU",
    "k0": "K = 0",
    "k4": "K = 4",
    "full": "full covariance",
    "auto": 'kl_coef="auto"',
    "calibrated": "base, calibrate_posterior",
    "reward-step": "reward decoder, own step",
    "reward-trial": "reward decoder, whole trial",
}
#: Tables by their markers in the document: columns (title, key of the numbers, format)
TABLES: dict[str, list[tuple[str, str, str]]] = {
    "mean": [
        ("R2, linear", "r2", ".3f"),
        ("R2, network", "exact_from_latent", ".3f"),
        ("m from exact", "latent_from_exact", ".3f"),
        ("bias/sd", "bias", ".3f"),
        ("lost by mean", "lost_by_mean", ".3f"),
    ],
    "width": [
        ("claimed/exact", "claimed_ratio", ".2f"),
        ("with R/exact", "total_ratio", ".2f"),
        ("in 50%", "coverage_50", ".3f"),
        ("in 90%", "coverage_90", ".3f"),
        ("in 95%", "coverage_95", ".3f"),
        ("lost by width, with R", "lost_by_width", ".3f"),
        ("without R", "claimed_lost_by_width", ".2f"),
    ],
    "both": [
        ("log-score", "log_score", ".3f"),
        ("exact", "exact_log_score", ".3f"),
        ("lost", "lost", ".3f"),
        ("lost without R", "claimed_lost", ".2f"),
        ("regret, sampled", "regret_sampled", ".2f"),
        ("mode", "regret_mode", ".2f"),
    ],
}
#: Columns of the table of differences from the base
DIFFERENCES = [
    ("R2, linear", "r2", "+.3f"),
    ("R2, network", "exact_from_latent", "+.3f"),
    ("lost by mean", "lost_by_mean", "+.3f"),
    ("lost by width, with R", "lost_by_width", "+.3f"),
    ("lost", "lost", "+.3f"),
    ("claimed/exact", "claimed_ratio", "+.2f"),
    ("regret, mode", "regret_mode", "+.2f"),
]
#: Scores whose values by step are kept for the figure
CURVES = ("r2", "bias", "lost", "lost_by_mean", "lost_by_width", "claimed_variance", "total_variance", "exact_variance")
#: 97.5% quantiles of Student's t by the number of seeds
T_QUANTILES = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}


class SaveAt(BaseCallback):
    """Save the agent when the rollout that follows some numbers of steps begins.

    :param paths: files by numbers of steps
    """

    def __init__(self, paths: dict[int, Path]) -> None:
        super().__init__()
        self._paths = paths

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        while self._paths and self.num_timesteps >= min(self._paths):
            self.model.save(self._paths.pop(min(self._paths)))


def train(variant: str, seed: int, timesteps: int, out: Path) -> None:
    """Train one agent, and save it as VARIANT-SEED.zip."""
    arguments, policy_kwargs = VARIANTS[variant]
    model = make_agent("bandit", seed, arguments, policy_kwargs)
    saved = {steps: out / f"{variant}@{steps}-{seed}.zip" for steps in SAVED_AT.get(variant, ())}
    model.learn(timesteps, callback=SaveAt(saved))
    model.save(out / f"{variant}-{seed}.zip")


# -- evaluate -------------------------------------------------------------------------------------------------


def evaluate(out: Path, n_trials: int) -> None:
    """Write what each agent in the folder believes to a JSON file beside it, if there is none that is newer."""
    agents = sorted(out.glob("*.zip"))
    if not agents:
        raise SystemExit(f"there is no agent in {out}: run the command train first")
    for path in agents:
        variant, seed = path.stem.rsplit("-", 1)
        variants = ("base", "calibrated") if variant == "base" else (variant,)
        files = [out / f"{name}-{seed}.json" for name in variants]
        if all(file.exists() and file.stat().st_mtime > path.stat().st_mtime for file in files):
            continue
        model = LaplaceRecurrentPPO.load(path, device="cpu")
        for name, file in zip(variants, files, strict=True):
            if name == "calibrated":
                calibrate_posterior(model, make_vec_env(ENV_ID, n_envs=256, seed=50_000), seed=int(seed))
            result = {"variant": name, "seed": int(seed), "n_trials": n_trials, **measure(model, n_trials)}
            file.write_text(json.dumps(result), encoding="utf-8")
            print(name, seed, {key: round(value, 3) for key, value in result["numbers"].items()}, flush=True)


def measure(model: LaplaceRecurrentPPO, n_trials: int) -> dict[str, Any]:
    """Averages over the steps after the first observation, curves over the steps, and regret."""
    evaluation = evaluate_belief(model, ENV_ID, n_trials, seed=0)
    return {
        "timesteps": model.num_timesteps,
        "numbers": {
            **averages(evaluation),
            "regret_sampled": regret(model, n_trials, deterministic=False),
            "regret_mode": regret(model, n_trials, deterministic=True),
        },
        "curves": {name: [float(f"{value:.4g}") for value in evaluation.scores[name][1:]] for name in CURVES},
    }


def averages(evaluation: BeliefEvaluation) -> dict[str, float]:
    """Of all scores over the steps after the first, of the ratios of variances, and the simulation's totals."""
    scores = {name: values[1:] for name, values in evaluation.scores.items()}
    for part in ("claimed", "total"):
        scores[f"{part}_ratio"] = scores[f"{part}_variance"] / scores["exact_variance"]
    numbers = {name: float(values.mean()) for name, values in scores.items()}
    return numbers | {name: estimate.value for name, estimate in evaluation.simulation.items()}


def regret(model: LaplaceRecurrentPPO, n_trials: int, deterministic: bool) -> float:
    """Mean cumulative regret of a trial, on tasks that are neither those of training nor of the evaluation."""
    env = make_vec_env(ENV_ID, n_envs=n_trials, seed=20_000)
    th.manual_seed(0)
    obs, state, start = env.reset(), None, np.ones(n_trials, dtype=bool)
    total = np.zeros(n_trials)
    while not (start.all() and state is not None):
        actions, state = model.predict(obs, state, start, deterministic)
        obs, _, start, _ = env.step(actions)
        total += env.step_infos["regret"]
    return float(total.mean())


# -- report ---------------------------------------------------------------------------------------------------


class Results:
    """The numbers of all agents by variant.

    :param agents: what ``evaluate`` has written, one for each agent
    """

    def __init__(self, agents: Iterable[dict[str, Any]]) -> None:
        self.agents = sorted(agents, key=lambda agent: (list(NAMES).index(agent["variant"]), agent["seed"]))
        #: Those that there are, in the tables' order
        self.variants = list(dict.fromkeys(agent["variant"] for agent in self.agents))

    def values(self, variant: str, key: str) -> dict[int, float]:
        """A number of a variant by seed."""
        return {one["seed"]: one["numbers"][key] for one in self.agents if one["variant"] == variant}

    def differences(self, variant: str, key: str) -> list[float]:
        """How much it differs from the base agent's of the same seed."""
        base = self.values("base", key)
        return [value - base[seed] for seed, value in self.values(variant, key).items() if seed in base]

    def curves(self, variant: str, key: str) -> np.ndarray:
        """A score by step, shape (number of seeds, T - 1)."""
        return np.array([one["curves"][key] for one in self.agents if one["variant"] == variant])

    def save(self, path: Path) -> None:
        """An agent on a line."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("[\n" + ",\n".join(map(json.dumps, self.agents)) + "\n]\n", encoding="utf-8")


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half the width of its 95% interval over seeds, NaN for one seed."""
    n = len(values)
    reach = T_QUANTILES[n] * float(np.std(values, ddof=1)) / np.sqrt(n) if n > 1 else float("nan")
    return float(np.mean(values)), reach


def cell(values: list[float], form: str) -> str:
    """``mean ± half width``."""
    mean, reach = interval(values)
    return f"{mean:{form}}" + (f" ± {reach:{form.replace('+', '')}}" if np.isfinite(reach) else "")


def table(variants: list[str], columns: list[tuple[str, str, str]], values: Callable[[str, str], list[float]]) -> str:
    """A table in Markdown, a row for each variant that has values."""
    head = ["agent", "n", *(title for title, _, _ in columns)]
    rows = []
    for variant in variants:
        n = len(values(variant, columns[0][1]))
        if n:
            rows.append([NAMES[variant], str(n), *(cell(values(variant, key), form) for _, key, form in columns)])
    return markdown(head, rows)


def tables(results: Results) -> dict[str, str]:
    """All tables by their markers."""
    found = {
        name: table(results.variants, columns, lambda variant, key: list(results.values(variant, key).values()))
        for name, columns in TABLES.items()
    }
    found["width"] += exact_row(results)
    others = [variant for variant in results.variants if variant != "base"]
    return found | {"differences": table(others, DIFFERENCES, results.differences)}


def exact_row(results: Results) -> str:
    """The exact Gaussian's line in the table of widths, after what the base agents saw."""
    cells = []
    for _, key, form in TABLES["width"]:
        covered = key.startswith("coverage")
        cells.append(cell(list(results.values("base", f"exact_{key}").values()), form) if covered else "")
    return f"\n| exact belief | {len(results.values('base', 'r2'))} | {' | '.join(cells)} |"


def insert(text: str, found: dict[str, str]) -> str:
    """The document with each table between its markers.

    :raises ValueError: if the document lacks a marker
    """
    for name, content in found.items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        before, first, rest = text.partition(begin)
        _, last, after = rest.partition(end)
        if not first or not last:
            raise ValueError(f"the document has no {begin} or no {end} after it")
        text = f"{before}{begin}\n{content}\n{end}{after}"
    return text


def draw_steps(results: Results, path: Path) -> None:
    """Curves of the base agent by step, means over seeds."""
    _, (explained, losses, width) = axes = new_figure(1, 3, (12.0, 4.0))
    steps = np.arange(1, results.curves("base", "r2").shape[1] + 1)

    def draw(panel: Axes, key: str, color: str, label: str, style: str = "-", variant: str = "base") -> None:
        curves = results.curves(variant, key)
        panel.plot(steps, curves.mean(0), style, color=color, linewidth=1.4, label=label)
        panel.fill_between(steps, curves.min(0), curves.max(0), color=color, alpha=0.15, linewidth=0)

    for i, variant in enumerate(("base", "base@100000", "base@300000", "long", "reward-step", "reward-trial")):
        if variant in results.variants:
            draw(explained, "r2", COLORS[i], NAMES[variant].partition(":")[0], variant=variant)
    draw(losses, "lost", COLORS[0], "lost")
    draw(losses, "lost_by_mean", COLORS[1], "by mean")
    draw(losses, "lost_by_width", COLORS[2], "by width")
    draw(width, "total_variance", COLORS[0], "claimed, with R")
    draw(width, "claimed_variance", COLORS[0], "claimed", ":")
    draw(width, "exact_variance", "#000000", "exact", "--")
    set_log(width)
    titles = ("R² of the read-out for the exact mean", "base: log-score lost (nats)", "base: variance of the task")
    for panel, title in zip((explained, losses, width), titles, strict=True):
        panel.set_title(title, fontsize="medium")
        panel.set_xlabel("pulls", fontsize="small")
        # Below, where it hides no curve
        panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2, fontsize="small", frameon=False)
    axes[0].savefig(path, dpi=100)


def draw_variants(results: Results, path: Path) -> None:
    """Each trained agent's numbers as dots, means and intervals as lines."""
    # Those on the way are so much worse that the others could not be told apart
    variants = [variant for variant in results.variants if "@" not in variant]
    panels = (
        ("R² of the read-out", "r2"),
        ("lost by the mean (nats)", "lost_by_mean"),
        ("lost by the width, with R", "lost_by_width"),
        ("lost in all (nats)", "lost"),
        ("regret of the mode", "regret_mode"),
    )
    figure, axes = new_figure(1, len(panels), (13.0, 0.6 + 0.3 * len(variants)))
    rows = np.arange(len(variants))
    for panel, (title, key) in zip(axes, panels, strict=True):
        for row, variant in zip(rows, variants, strict=True):
            values = list(results.values(variant, key).values())
            mean, reach = interval(values)
            panel.plot(values, [row] * len(values), "o", color=COLORS[0], markersize=3.5, alpha=0.6)
            panel.plot([mean], [row], "|", color="#000000", markersize=9)
            if np.isfinite(reach):
                panel.hlines(row, mean - reach, mean + reach, color="#000000", linewidth=1.0)
        panel.axvline(interval(list(results.values("base", key).values()))[0], color="#888888", linewidth=0.8)
        panel.set_title(title, fontsize="medium")
        panel.tick_params(labelsize="small")
        panel.set_yticks(rows, [NAMES[variant] if panel is axes[0] else "" for variant in variants])
        panel.set_ylim(len(rows) - 0.5, -0.5)
    figure.savefig(path, dpi=100)


def report(out: Path, docs: Path) -> None:
    """Collect the JSON files, and write them, tables and figures to the documentation."""
    results = Results(json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("*.json")))
    if "base" not in results.variants:
        raise SystemExit(f"there is no evaluation of base in {out}: run the command evaluate first")
    results.save(docs / "results" / "belief.json")
    document = docs / "belief.md"
    document.write_text(insert(document.read_text(encoding="utf-8"), tables(results)), encoding="utf-8")
    draw_steps(results, docs / "belief-steps.png")
    draw_variants(results, docs / "belief-variants.png")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="train an agent")
    training.add_argument("variant", choices=VARIANTS)
    training.add_argument("--seed", type=int, default=0)
    training.add_argument("--timesteps", type=int, help="environment steps, instead of the variant's")
    evaluating = commands.add_parser("evaluate", help="evaluate all agents that were trained")
    evaluating.add_argument("--trials", type=int, default=2000, help="half to fit the read-out on, half to score")
    reporting = commands.add_parser("report", help="write tables and figures")
    reporting.add_argument("--docs", type=Path, default=Path(__file__).parent.parent / "docs", help="their folder")
    for command in (training, evaluating, reporting):
        command.add_argument("--out", type=Path, default=Path("runs/belief"), help="folder of the agents")
    given = parser.parse_args(arguments)
    th.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    if given.command == "train":
        timesteps = given.timesteps or TIMESTEPS_OF.get(given.variant, TIMESTEPS)
        train(given.variant, given.seed, timesteps, given.out)
    elif given.command == "evaluate":
        evaluate(given.out, given.trials)
    else:
        report(given.out, given.docs)


if __name__ == "__main__":
    main()
