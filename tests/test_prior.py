"""The prior's mean and standard deviations unit by unit, and the noise that the curvature assumes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_laplace import LaplaceRecurrentPPO
from tests.helpers import make_policy, randomize
from tests.test_laplace_recurrent_ppo import collect, largest_log_ratio, small_model
from tests.test_replayed_kl import replayed

KINDS: dict[str, dict[str, Any]] = {
    "markov": {},
    "stationary": {"factorization": "stationary"},
    "damped": {"factorization": "stationary", "damping": 0.3},
    "window": {"window": 3},
    "normalized": {"factorization": "stationary", "normalize": True},
    "summed means": {"sum_means": True},
}
MEAN, STD = [0.5, -1.0, 2.0], [0.4, 1.0, 3.0]


def played(policy: Any, n_steps: int = 5) -> tuple[tuple[np.ndarray, ...], Any]:
    state, rng = None, np.random.default_rng(0)
    for t in range(n_steps):
        starts = np.array([t == 0, t in (0, 2)])
        _, state = policy.predict(rng.normal(size=(2, 4)).astype(np.float32), state, starts, deterministic=True)
    return state, policy.posterior(state)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("covariance", ["diagonal", "full"])
@pytest.mark.parametrize("latent_dim", [None, 3])
def test_noise_divides_what_the_steps_add(kind: str, covariance: str, latent_dim: int | None) -> None:
    kwargs = {"prior_std": 1.0, "covariance": covariance, **KINDS[kind]}
    one, other = (
        make_policy(latent_dim=latent_dim, posterior_kwargs={**kwargs, "noise_std": noise_std})
        for noise_std in (1.0, 2.5)
    )
    other.load_state_dict(one.state_dict())
    (_, plain), (_, noisy) = played(one), played(other)
    prior = 0.3 if kind == "damped" else 1.0
    identity = th.full((plain.dim,), prior)
    identity = identity.diag() if covariance == "full" else identity
    th.testing.assert_close(noisy.precision - identity, (plain.precision - identity) / 2.5**2)
    th.testing.assert_close(noisy.mean, plain.mean)
    assert (plain.precision - identity).abs().max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("latent_dim", [None, 3])
def test_diagonal_precisions_are_the_diagonals_of_full_ones(kind: str, latent_dim: int | None) -> None:
    kwargs = {"prior_std": 1.0, "noise_std": 0.7, **KINDS[kind]}
    diagonal, full = (
        make_policy(latent_dim=latent_dim, posterior_kwargs={**kwargs, "covariance": covariance})
        for covariance in ("diagonal", "full")
    )
    full.load_state_dict(diagonal.state_dict())
    (_, one), (_, other) = played(diagonal), played(full)
    th.testing.assert_close(one.precision, other.precision.diagonal(dim1=-2, dim2=-1))
    assert (one.precision[0] - one.precision[1]).abs().max() > 0.01


@pytest.mark.parametrize("posterior", ["laplace", "variational", "constant_variance"])
@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_prior_unit_by_unit(posterior: str, covariance: str) -> None:
    kwargs: dict[str, Any] = {"prior_std": STD}
    if posterior != "constant_variance":
        kwargs |= {"covariance": covariance}
    policy = make_policy(latent_dim=3, posterior=posterior, posterior_kwargs={**kwargs, "prior_mean": MEAN})
    prior = policy.latent_layer.prior(2)
    th.testing.assert_close(prior.mean, th.tensor([MEAN, MEAN]))
    th.testing.assert_close(prior.stddev, th.tensor([STD, STD]))


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_every_episode_starts_from_it(covariance: str) -> None:
    """After one step, what the step added on top of the prior is what it adds on top of another."""
    kwargs = {"covariance": covariance, "prior_mean": MEAN}
    policies = [make_policy(latent_dim=3, posterior_kwargs={**kwargs, "prior_std": std}) for std in (STD, 1.0)]
    policies[1].load_state_dict({k: v for k, v in policies[0].state_dict().items() if "prior_precision" not in k})
    (_, one), (_, other) = (played(policy, 3) for policy in policies)
    own, identity = th.tensor(STD) ** -2, th.ones(3)
    if covariance == "full":
        own, identity = own.diag(), identity.diag()
    th.testing.assert_close(one.precision - own, other.precision - identity)


@pytest.mark.parametrize("kind", KINDS)
def test_kl_at_an_episodes_start_is_from_the_priors_mean(kind: str) -> None:
    """The KL that an update penalises is the rollout's, up to what has no gradient."""
    kwargs = {**KINDS[kind], "prior_std": STD, "prior_mean": MEAN}
    model = small_model(
        kl_coef=0.1, n_steps=13, sequence_length=5, policy_kwargs={"latent_dim": 3, "posterior_kwargs": kwargs}
    )
    randomize(model.policy)
    parts = []

    def keep(callback_locals: dict[str, Any]) -> None:
        step = callback_locals["step"].posterior
        parts.append(step.posterior.kl_parts(step.previous).mean)

    _, callback = model._setup_learn(1)
    callback.on_step = lambda: keep(callback.locals) or True  # type: ignore[method-assign, func-returns-value]
    callback.on_training_start({}, {})
    assert model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    expected = th.stack(parts)
    kl = replayed(model)
    assert kl.shape == expected.shape
    assert float(kl.sum()) == pytest.approx(float(expected.sum()), rel=1e-4)


def test_saved_with_the_model(tmp_path: Path) -> None:
    kwargs = {"latent_dim": 3, "posterior_kwargs": {"prior_std": STD, "prior_mean": MEAN, "noise_std": 2.0}}
    model = small_model(policy_kwargs=kwargs)
    model.save(tmp_path / "model")
    for weights_only in (False, True):
        loaded = LaplaceRecurrentPPO.load(tmp_path / "model", device="cpu", weights_only=weights_only)
        layer = loaded.policy.latent_layer
        assert (layer.prior_std, layer.noise_std) == (STD, 2.0)
        th.testing.assert_close(layer.prior_mean, th.tensor(MEAN))
        assert {"latent_layer.prior_mean", "latent_layer.prior_precision"} <= set(loaded.policy.state_dict())
    others = {"prior_std": [1.0, 2.0, 3.0], "prior_mean": 0.0}
    for changed in (others, {"prior_std": 0.5}):
        layer = LaplaceRecurrentPPO.from_recurrent_ppo(model, posterior_kwargs=changed).policy.latent_layer
        th.testing.assert_close(layer.prior(1).stddev[0], th.as_tensor(changed["prior_std"]).expand(3).float())
        assert (layer.prior_mean == 0).all()
    converted = LaplaceRecurrentPPO.from_recurrent_ppo(model)
    assert (converted.policy.latent_layer.prior_std, converted.policy.latent_layer.noise_std) == (STD, 2.0)


def test_set_afterwards_and_saved(tmp_path: Path) -> None:
    model = small_model(policy_kwargs={"latent_dim": 3})
    assert not any("prior" in name for name in model.policy.state_dict())
    model.policy.latent_layer.set_prior(std=0.5)
    model.save(tmp_path / "model")
    assert LaplaceRecurrentPPO.load(tmp_path / "model", device="cpu").policy.latent_layer.prior_std == 0.5
    model.policy.latent_layer.set_prior(MEAN, STD)
    model.save(tmp_path / "model")
    loaded = LaplaceRecurrentPPO.load(tmp_path / "model", device="cpu")
    th.testing.assert_close(loaded.policy.latent_layer.prior(1).stddev, th.tensor([STD]))
    th.testing.assert_close(loaded.policy.latent_layer.prior_mean, th.tensor(MEAN))
    collect(loaded.__class__.load(tmp_path / "model", env=model.get_env(), device="cpu"))


@pytest.mark.parametrize("kind", KINDS)
def test_ratio_is_one(kind: str) -> None:
    kwargs = {**KINDS[kind], "prior_std": STD, "prior_mean": MEAN, "noise_std": 0.5}
    model = small_model(policy_kwargs={"latent_dim": 3, "posterior_kwargs": kwargs}, kl_coef=0.01)
    for _ in range(2):
        collect(model)
        assert largest_log_ratio(model) < 1e-5
    model.learn(36)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"noise_std": 0}, "noise_std must be a positive finite number, got 0"),
        ({"noise_std": -1.0}, "noise_std must be a positive finite number, got -1.0"),
        ({"prior_std": [1.0, 2.0]}, r"prior_std must be a positive finite number or 3 of them, got \[1.0, 2.0\]"),
        ({"prior_std": [1.0, 0.0, 2.0]}, "prior_std must be a positive finite number or 3 of them"),
        ({"prior_std": [1.0, np.nan, 2.0]}, "prior_std must be a positive finite number or 3 of them"),
        ({"prior_mean": [1.0, 2.0]}, r"prior_mean must be a finite number or 3 of them, got \[1.0, 2.0\]"),
        ({"prior_mean": np.inf}, "prior_mean must be a finite number or 3 of them, got inf"),
        ({"prior_mean": True}, "prior_mean must be a finite number or 3 of them, got True"),
        ({"prior_mean": "0"}, "prior_mean must be a finite number or 3 of them, got '0'"),
    ],
)
def test_bad_input(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_policy(latent_dim=3, posterior_kwargs=kwargs)


def test_no_number_for_a_single_unit() -> None:
    with pytest.raises(ValueError, match="prior_mean must be a finite number or 1 of them, got '0'"):
        make_policy(latent_dim=1, posterior_kwargs={"prior_mean": "0"})
