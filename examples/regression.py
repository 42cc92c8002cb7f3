"""Learn regression from targets, with each posterior, and compare with Bayesian linear regression.

python examples/regression.py train laplace-full [--std] [--seed 0] [--out runs/regression]    # about ten minutes
python examples/regression.py evaluate [--out runs/regression]                                 # all that were trained
"""

import argparse
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3.common.utils import LinearSchedule

from sb3_laplace import (
    LaplaceRecurrentPPO,
    MlpFeatures,
    RegressionEvaluation,
    evaluate_regression,
    make_vec_env,
    plot_regression_functions,
    plot_regression_scores,
)

#: Posterior of each agent, with its arguments
METHODS: dict[str, dict[str, Any]] = {
    "laplace-diagonal": {"posterior": "laplace", "posterior_kwargs": {"prior_std": 0.1}},
    "laplace-full": {"posterior": "laplace", "posterior_kwargs": {"prior_std": 0.1, "covariance": "full"}},
    "point": {"posterior": "point"},
    "variational": {"posterior": "variational", "posterior_kwargs": {"prior_std": 0.1}},
}
#: Only a learned covariance needs the penalty: without it, it would shrink until the agent is a point
KL_COEF = {"variational": 1e-4}
#: Steps of training; a learned covariance takes longer to reach the same error
TIMESTEPS = dict.fromkeys(METHODS, 3_200_000) | {"variational": 4_800_000}
#: Tried for a posterior after the fact
PRIOR_STDS = (0.1, 0.3, 1.0, 3.0, 10.0)


def train(method: str, seed: int, timesteps: int, state_dependent_std: bool) -> LaplaceRecurrentPPO:
    """Supervised meta-learning: the negative log-likelihood of the targets alone."""
    model = LaplaceRecurrentPPO(
        "LaplaceLstmPolicy",
        make_vec_env("sb3_laplace/FourierRegression-v0", n_envs=256, seed=seed),
        n_steps=50,
        batch_size=1600,
        n_epochs=6,
        learning_rate=LinearSchedule(4e-3, 0.0, 1.0),
        max_grad_norm=1.0,
        target_coef=1.0,
        policy_coef=0.0,
        kl_coef=KL_COEF.get(method, 0.0),
        seed=seed,
        device="cpu",
        policy_kwargs={
            "lstm_hidden_size": 128,
            "shared_lstm": True,
            "enable_critic_lstm": False,
            "latent_dim": 64,
            # What makes the task easy to learn: the query reaches the heads, x passes two layers before the LSTM,
            # and the activations are smooth as the functions are
            "head_inputs": ("features",),
            "features_extractor_class": MlpFeatures,
            "features_extractor_kwargs": {"net_arch": [64, 64], "activation_fn": th.nn.SiLU},
            "net_arch": [128, 128],
            "activation_fn": th.nn.SiLU,
            "ortho_init": False,
            "log_std_init": -1.5,
            "state_dependent_std": state_dependent_std,
            **METHODS[method],
        },
    )
    return model.learn(timesteps, progress_bar=True)


def put_posterior_on(point: LaplaceRecurrentPPO, n_functions: int, n_samples: int) -> LaplaceRecurrentPPO:
    """A full Laplace posterior for a point agent, its prior as wide as suits other functions."""
    best: tuple[float, LaplaceRecurrentPPO] | None = None
    for prior_std in PRIOR_STDS:
        model = LaplaceRecurrentPPO.from_recurrent_ppo(
            point,
            latent_dim=point.policy.latent_layer.latent_dim,
            posterior_kwargs={"covariance": "full", "prior_std": prior_std},
        )
        evaluation = evaluate_regression(model, n_functions, (0, 3, 10), 30, n_samples, seed=1)
        loss = float(evaluation.agent["nll_mixture"].mean())
        print(f"prior_std {prior_std}: negative log-likelihood {loss:.3f}")
        if best is None or loss < best[0]:
            best = loss, model
    assert best is not None
    return best[1]


def evaluate(out: Path, n_functions: int, n_samples: int) -> None:
    """Tables, CSV files and plots of all agents in the folder."""
    models = {path.stem: LaplaceRecurrentPPO.load(path, device="cpu") for path in sorted(out.glob("*.zip"))}
    if not models:
        raise SystemExit(f"there is no agent in {out}: run the command train first")
    for name in [name for name in models if name.startswith("point")]:
        print(f"\n{name}: a posterior after the fact")
        models[f"posthoc-{name}"] = put_posterior_on(models[name], n_functions, n_samples)
    for context in ("train", "test"):
        evaluations: dict[str, RegressionEvaluation] = {}
        for name, model in models.items():
            evaluations[name] = evaluate_regression(model, n_functions, n_posterior_samples=n_samples, context=context)
            print(f"\n{name}\n{evaluations[name].table()}", flush=True)
            evaluations[name].to_csv(out / f"{name}-{context}.csv")
            plot_regression_functions(evaluations[name]).savefig(out / f"{name}-{context}.png")
        plot_regression_scores(evaluations).savefig(out / f"scores-{context}.png")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="train an agent")
    training.add_argument("method", choices=METHODS)
    training.add_argument("--seed", type=int, default=0)
    training.add_argument("--timesteps", type=int, help="by default 3.2 million, 4.8 million for variational")
    training.add_argument("--std", action="store_true", help="learn a standard deviation that depends on the state")
    evaluating = commands.add_parser("evaluate", help="evaluate all agents that were trained")
    evaluating.add_argument("--functions", type=int, default=128, help="number of functions")
    evaluating.add_argument("--samples", type=int, default=30, help="draws from each posterior")
    for command in (training, evaluating):
        command.add_argument("--out", type=Path, default=Path("runs/regression"), help="folder of the agents")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.command == "train":
        timesteps = TIMESTEPS[options.method] if options.timesteps is None else options.timesteps
        name = f"{options.method}-std" if options.std else options.method
        train(options.method, options.seed, timesteps, options.std).save(options.out / f"{name}-{options.seed}")
    else:
        evaluate(options.out, options.functions, options.samples)


if __name__ == "__main__":
    main()
