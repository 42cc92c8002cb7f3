"""Figures of the paper authors' own model, through the public policy (invariant 3)."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_laplace import LaplaceLstmPolicy

GOLDEN = Path(__file__).parent / "golden"
# File name -> keywords of the policy. The reference's prior is N(0, I).
CASES: dict[str, dict[str, Any]] = {
    "constant_variance": {"posterior": "constant_variance"},
    "markov_diag": {"posterior_kwargs": {"covariance": "diagonal"}},
    "markov_diag_gru": {"posterior_kwargs": {"covariance": "diagonal"}, "rnn_type": "gru"},
    "markov_full": {"posterior_kwargs": {"covariance": "full"}},
    "markov_full_gru": {"posterior_kwargs": {"covariance": "full"}, "rnn_type": "gru"},
    "markov_sum_both_diag": {"posterior_kwargs": {"covariance": "diagonal", "sum_means": True}},
    "markov_sum_both_full": {"posterior_kwargs": {"covariance": "full", "sum_means": True}},
    "stationary_diag": {"posterior_kwargs": {"covariance": "diagonal", "factorization": "stationary"}},
    "stationary_full": {"posterior_kwargs": {"covariance": "full", "factorization": "stationary"}},
    "stationary_full_damping0.1": {
        "posterior_kwargs": {"covariance": "full", "factorization": "stationary", "damping": 0.1}
    },
    "stationary_normalized_full": {
        "posterior_kwargs": {"covariance": "full", "factorization": "stationary", "normalize": True}
    },
    "step_diag": {"posterior_kwargs": {"covariance": "diagonal", "factorization": "stationary", "window": 1}},
    "step_full": {"posterior_kwargs": {"covariance": "full", "factorization": "stationary", "window": 1}},
    "step_sum_mean_full": {
        "posterior_kwargs": {"covariance": "full", "factorization": "stationary", "window": 1, "sum_means": True}
    },
    "variational_diag": {"posterior": "variational", "posterior_kwargs": {"covariance": "diagonal"}},
    "variational_full_cayley": {"posterior": "variational", "posterior_kwargs": {"covariance": "full"}},
    "window4_full": {"posterior_kwargs": {"covariance": "full", "factorization": "stationary", "window": 4}},
    "window4_sum_precision_full": {"posterior_kwargs": {"covariance": "full", "window": 4}},
}


def load_policy(golden: dict[str, np.ndarray], policy_kwargs: dict[str, Any]) -> LaplaceLstmPolicy:
    n_inputs = golden["inputs"].shape[1]
    latent_dim, hidden_size = golden["latent_weight"].shape
    posterior_kwargs = {"prior_std": 1.0, **policy_kwargs.get("posterior_kwargs", {})}
    policy = LaplaceLstmPolicy(
        spaces.Box(-np.inf, np.inf, (n_inputs,), np.float64),
        spaces.Discrete(2),
        lambda _: 0.0,
        lstm_hidden_size=hidden_size,
        latent_dim=latent_dim,
        **{**policy_kwargs, "posterior_kwargs": posterior_kwargs},
    ).double()
    names = {
        "core_weight_ih": "lstm_actor.weight_ih_l0",
        "core_weight_hh": "lstm_actor.weight_hh_l0",
        "core_bias_ih": "lstm_actor.bias_ih_l0",
        "core_bias_hh": "lstm_actor.bias_hh_l0",
        "latent_weight": "latent_layer.mean_net.weight",
        "latent_bias": "latent_layer.mean_net.bias",
        "scale_weight": "latent_layer.scale_net.weight",
        "scale_bias": "latent_layer.scale_net.bias",
    }
    weights = {names[key]: th.as_tensor(value) for key, value in golden.items() if key in names}
    policy.load_state_dict({**policy.state_dict(), **weights})
    return policy


def test_every_file_is_a_case() -> None:
    assert {path.stem for path in GOLDEN.glob("*.npz")} == set(CASES)


@pytest.mark.parametrize("case", CASES)
def test_golden_figures(case: str) -> None:
    golden = dict(np.load(GOLDEN / f"{case}.npz"))
    policy = load_policy(golden, CASES[case])
    state, previous = None, policy.latent_layer.prior(1)
    names = ("mean", "precision", "covariance", "variance", "entropy", "kl")
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for inputs in golden["inputs"]:
        _, state = policy.predict(inputs[None], state, deterministic=True)
        posterior = policy.posterior(state)
        for name in ("mean", "precision", "covariance", "variance"):
            found[name].append(getattr(posterior, name)[0].numpy())
        found["entropy"].append(posterior.entropy()[0].numpy())
        found["kl"].append(posterior.kl(previous)[0].numpy())
        previous = posterior
    for name in names:
        if name in golden:
            scale = np.abs(golden[name]).max()
            np.testing.assert_allclose(np.stack(found[name]), golden[name], rtol=1e-4, atol=1e-5 * scale, err_msg=name)
