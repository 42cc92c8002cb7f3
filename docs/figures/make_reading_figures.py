"""Draw the figures of docs/reading.md: what the report and TensorBoard show of agents that are well and of others.

python docs/figures/make_reading_figures.py train [--out runs/reading]   # four small agents, seed 0: some minutes
python docs/figures/make_reading_figures.py draw [--out runs/reading]    # reading-*.png, docs/results/reading.json

The agents:

- good: LaplaceRecurrentPPO on DirichletBandit with kl_coef="auto"
- narrow: a point agent of fewer steps, given a posterior with a prior_std of 0.01 afterwards
- swamped: the default kl_coef, the identity latent and a prior_std of 1, whose draws are wider than what they are about
- trained, untrained: a point agent on trials of three episodes of one bandit, and the same before training
"""

import argparse
import csv
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv

from sb3_laplace import (
    Diagnosis,
    LaplaceRecurrentPPO,
    PosteriorCallback,
    PosteriorTrace,
    calibrate_posterior,
    diagnose,
    evaluate_belief,
    make_vec_env,
    plot_belief,
    posterior_trace,
)
from sb3_laplace.plots import traces as plots
from sb3_laplace_envs import Trial

FOLDER = Path(__file__).parent
RESULTS = FOLDER.parent / "results" / "reading.json"
ENV_ID = "sb3_laplace/DirichletBandit-v0"
SEED = 0
#: Steps of an episode, where a trial has three
EPISODE = 15
#: Trials that are traced, on which verdicts rest
N_TRIALS = 1000
_STEPS = "time/total_timesteps"

#: Environment steps of training, kl_coef, and keywords of the policy
AGENTS: dict[str, tuple[int, str | None, dict[str, Any]]] = {
    "good": (1_000_000, "auto", {"latent_dim": 32, "posterior_kwargs": {"prior_std": 1.0}}),
    "narrow": (500_000, None, {"posterior": "point"}),
    "swamped": (1_000_000, None, {"latent_dim": None, "posterior_kwargs": {"prior_std": 1.0}}),
    "trained": (500_000, None, {"posterior": "point"}),
}


def make_env(name: str, n_envs: int, seed: int) -> VecEnv:
    """The environment of an agent."""
    if name != "trained":
        return make_vec_env(ENV_ID, n_envs, seed)
    env_kwargs, wrapper_kwargs = {"trial_length": EPISODE}, {"n_episodes": 3}
    return make_vec_env(ENV_ID, n_envs, seed, env_kwargs=env_kwargs, wrapper_class=Trial, wrapper_kwargs=wrapper_kwargs)


def make_agent(name: str) -> LaplaceRecurrentPPO:
    """An agent that has learned nothing yet."""
    _, kl_coef, policy_kwargs = AGENTS[name]
    n_steps = 3 * EPISODE if name == "trained" else 50
    return LaplaceRecurrentPPO(
        "LaplaceLstmPolicy",
        make_env(name, 128, SEED),
        n_steps=n_steps,
        batch_size=16 * n_steps,
        n_epochs=4,
        gamma=0.9,
        kl_coef=kl_coef,
        learning_rate=LinearSchedule(2e-3, 2e-4, 1.0),
        ent_coef=LinearSchedule(0.02, 0.0, 1.0),
        seed=SEED,
        device="cpu",
        policy_kwargs={
            "lstm_hidden_size": 64,
            "shared_lstm": True,
            "enable_critic_lstm": False,
            "net_arch": [64],
            **policy_kwargs,
        },
    )


def train(name: str, out: Path) -> None:
    """Train an agent, convert it if it is to be, and save it and what TensorBoard would show."""
    model = make_agent(name)
    model.set_logger(configure(str(out / name), ["csv"]))
    # Its figures go to TensorBoard only, so that there is nothing to draw here
    model.learn(AGENTS[name][0], callback=PosteriorCallback(figure_freq=0), progress_bar=False)
    if name == "narrow":
        model = LaplaceRecurrentPPO.from_recurrent_ppo(model, posterior_kwargs={"prior_std": 0.01})
    model.save(out / f"{name}.zip")


def write(name: str, figure: Figure | None, dpi: int = 110) -> None:
    """Write a figure as a PNG of 64 colours, which lines need no more than."""
    assert figure is not None, f"there is nothing to draw of {name}"
    path = FOLDER / f"reading-{name}.png"
    image = Image.fromarray(plots.to_image(figure, dpi)).quantize(64, dither=Image.Dither.NONE)
    image.save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def training_curves(out: Path) -> Figure:
    """What TensorBoard shows of two trainings."""
    panels = {
        "rollout/ep_rew_mean": ("rollout/ep_rew_mean",),
        "posterior/entropy_first_step (dotted)\nand _last_step": (
            "posterior/entropy_first_step",
            "posterior/entropy_last_step",
        ),
        "posterior/kl_mean": ("posterior/kl_mean",),
        "posterior/moved_to_claimed": ("posterior/moved_to_claimed",),
        "train/entropy_loss": ("train/entropy_loss",),
        "train/explained_variance": ("train/explained_variance",),
    }
    figure, axes = plots.new_figure(2, 3, (10.5, 5.4))
    for one, (title, tags) in zip(axes, panels.items(), strict=True):
        for color, name in zip(plots.COLORS, ("good", "swamped"), strict=False):
            with open(out / name / "progress.csv", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            for tag, style in zip(tags, (":", "-") if len(tags) > 1 else ("-",), strict=True):
                # Empty before the first update
                known = [row for row in rows if row[tag]]
                x, y = [float(row[_STEPS]) / 1000 for row in known], [float(row[tag]) for row in known]
                one.plot(x, y, style, color=color, linewidth=1.3, label=name if style == "-" else None)
        one.set_title(title, fontsize="medium")
        one.tick_params(labelsize="small")
        one.set_xlabel("thousand steps", fontsize="small")
        if tags[0] in ("posterior/kl_mean", "posterior/moved_to_claimed"):
            plots.set_log(one)
    axes[0].legend(frameon=False, fontsize="small")
    return figure


def draw(out: Path) -> None:
    """Trace the agents and draw each figure of the report."""
    names = ("good", "narrow")
    agents = {name: LaplaceRecurrentPPO.load(out / f"{name}.zip", device="cpu") for name in names}
    traces: dict[str, PosteriorTrace] = {}
    diagnoses: dict[str, Diagnosis] = {}
    for name, agent in agents.items():
        traces[name] = posterior_trace(agent, make_env(name, 250, 20_000), N_TRIALS, progress_bar=False)
        diagnoses[name] = diagnose(traces[name])
        print(f"\n{name}\n{diagnoses[name].table()}\n")
    for name in (
        *("performance", "entropy", "kl_mean", "kl_covariance", "moves"),
        *("calibration", "action_entropy", "jacobian_norm"),
    ):
        write(name.replace("_", "-"), getattr(plots, name)(traces))
    # As `diagnose --calibrate` does it: fitted to other trials, judged on the same ones
    calibration = calibrate_posterior(agents["narrow"], make_env("narrow", 250, 30_000), n_trials=500, seed=30_000)
    print(f"\n{calibration.table()}\n")
    trace = posterior_trace(agents["narrow"], make_env("narrow", 250, 20_000), N_TRIALS, progress_bar=False)
    diagnoses["narrow, calibrated"] = diagnose(trace)
    write("ratios", plots.ratios(diagnoses))
    write("moves-calibrated", plots.moves({"narrow, calibrated": trace}))
    for name, trace in traces.items():
        write(f"examples-{name}", plots.example_trials(trace))
    agents["narrow"] = LaplaceRecurrentPPO.load(out / "narrow.zip", device="cpu")
    beliefs = {name: evaluate_belief(agent, ENV_ID, n_trials=N_TRIALS, seed=20_000) for name, agent in agents.items()}
    for name, belief in beliefs.items():
        print(f"\n{name}\n{belief.table()}\n")
    write("belief", plot_belief(beliefs))

    several = {}
    several_agents = {
        "trained": LaplaceRecurrentPPO.load(out / "trained.zip", device="cpu"),
        "untrained": make_agent("trained"),
    }
    for name, agent in several_agents.items():
        several[name] = posterior_trace(agent, make_env("trained", 250, 20_000), N_TRIALS, progress_bar=False)
        diagnoses[name] = diagnose(several[name])
        print(f"\n{name}\n{diagnoses[name].table()}\n")
    write("episodes", plots.episodes(several))
    write("training", training_curves(out))
    within = {"entropy (nats)": traces["good"].entropy, "KL, mean part": traces["good"].kl_mean}
    within["KL, covariance part"] = traces["good"].kl_covariance
    write("within-trial", plots.within_trial({label: values.mean(0) for label, values in within.items()}), 90)
    document: dict[str, Any] = {
        name: {
            question: {"verdict": one["verdict"], "numbers": one["numbers"]}
            for question, one in diagnosis.to_dict()["findings"].items()
        }
        for name, diagnosis in diagnoses.items()
    }
    document["calibration"] = calibration.to_dict()
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")


def main() -> None:
    """Train the agents, or draw the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=["train", "draw"])
    parser.add_argument("--out", type=Path, default=Path("runs/reading"), help="folder of the agents")
    parser.add_argument("--agents", nargs="+", choices=list(AGENTS), default=list(AGENTS), help="which to train")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.stage == "draw":
        draw(options.out)
        return
    for name in options.agents:
        train(name, options.out)
        print(f"trained {name}")


if __name__ == "__main__":
    main()
