"""Belief of an agent beside the exact one: an agent that is the oracle scores as it must, small agents of all tasks."""

import csv
import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.vec_env import VecNormalize

from sb3_laplace import BeliefEvaluation, LaplaceRecurrentPPO, evaluate_belief, make_vec_env
from sb3_laplace.evaluation.belief import _TASKS, _play
from sb3_laplace.evaluation.belief_evaluation import score_belief
from sb3_laplace.evaluation.belief_scores import LOSSES, BeliefRecord, Scores, fit_readout, unexplained
from sb3_laplace.evaluation.bootstrap import Bootstrap
from sb3_laplace.readout import Readout
from sb3_laplace_envs import DirichletBanditVectorEnv
from sb3_laplace_envs.oracles import DirichletIndexPolicy
from tests.helpers import randomize

TASKS = {
    "sb3_laplace/DirichletBandit-v0": 5,
    "sb3_laplace/FourierRegression-v0": 7,
    "sb3_laplace/GridNavigation-v0": 25,
}
BANDIT = "sb3_laplace/DirichletBandit-v0"
QUICK: dict[str, Any] = {"bootstrap": Bootstrap(n_resamples=100), "network_steps": 10}
SMALL: dict[str, Any] = {"n_trials": 40, "env_kwargs": {"trial_length": 6}, **QUICK}


def small_model(env_id: str = BANDIT, env: Any = None, **policy_kwargs: Any) -> LaplaceRecurrentPPO:
    kwargs = {"lstm_hidden_size": 6, "net_arch": [8], "shared_lstm": True, "enable_critic_lstm": False}
    if env is None:
        env = make_vec_env(env_id, n_envs=2, seed=0)
    model = LaplaceRecurrentPPO(
        "LaplaceLstmPolicy", env, policy_kwargs={**kwargs, **policy_kwargs}, seed=0, device="cpu"
    )
    randomize(model.policy, std=0.3)
    return model


def oracle_as_agent(n_trials: int, seed: int, n_steps: int = 8) -> BeliefRecord:
    """An agent of the bandit whose latent is the exact mean, and whose covariance the exact one; random pulls."""
    env = DirichletBanditVectorEnv(num_envs=n_trials, concentration=0.5, trial_length=n_steps)
    oracle = DirichletIndexPolicy(env)
    observations, _ = env.reset(seed=seed)
    tasks = env.task.copy()
    rng = np.random.default_rng(seed)
    beliefs = []
    for _ in range(n_steps):
        oracle.observe(observations)
        beliefs.append(oracle.posterior())
        observations = env.step(rng.integers(env.n_arms, size=n_trials))[0]
    means, covariances = (np.stack(part, axis=1) for part in zip(*beliefs, strict=True))
    return BeliefRecord(tasks, means, means, covariances, covariances)


def gaussian_agent(n_trials: int, seed: int, n_steps: int = 5) -> BeliefRecord:
    """The same for a Gaussian task of which each step shows a noisy value."""
    rng = np.random.default_rng(seed)
    tasks = rng.normal(size=(n_trials, 3))
    shown = tasks[:, None] + rng.normal(size=(n_trials, n_steps - 1, 3))
    counts = np.arange(n_steps)
    means = np.concatenate([np.zeros((n_trials, 1, 3)), shown.cumsum(1)], axis=1) / (1 + counts)[:, None]
    covariances = np.broadcast_to(np.eye(3) / (1 + counts)[:, None, None], (n_trials, n_steps, 3, 3))
    return BeliefRecord(tasks, means, means, covariances, covariances)


def test_an_agent_that_is_the_oracle() -> None:
    fitted, held_out = oracle_as_agent(1200, seed=0), oracle_as_agent(600, seed=10_000)
    result = score_belief(fitted, held_out, network_steps=150, bootstrap=QUICK["bootstrap"])
    scores = result.scores
    assert np.isnan(scores["r2"][0])
    assert (scores["r2"][1:] > 0.98).all()
    assert (scores["bias"] < 0.12).all()
    np.testing.assert_allclose(scores["claimed_variance"], scores["exact_variance"], rtol=0.1)
    for name in ("coverage_50", "coverage_90", "coverage_95", "log_score"):
        np.testing.assert_allclose(scores[name], scores[f"exact_{name}"], atol=0.05)
    assert result.simulation["exact_from_latent"].value > 0.95
    assert result.simulation["latent_from_exact"].value > 0.95


def test_coverage_of_gaussian_beliefs_is_nominal() -> None:
    scores = score_belief(gaussian_agent(2000, 0), gaussian_agent(2000, 1), **QUICK).scores
    for level in (50, 90, 95):
        error = 4.0 * np.sqrt(level * (100 - level)) / 100 / np.sqrt(2000)
        np.testing.assert_allclose(scores[f"coverage_{level}"], level / 100, atol=error)
        np.testing.assert_allclose(scores[f"exact_coverage_{level}"], level / 100, atol=error)
    # The expected log-density of a Gaussian of variance 1/n in three dimensions
    expected = -1.5 * (1.0 + np.log(2.0 * np.pi / np.arange(1, 6)))
    np.testing.assert_allclose(scores["exact_log_score"], expected, atol=0.1)


def test_an_agent_that_claims_too_much_or_knows_nothing() -> None:
    fitted, held_out = gaussian_agent(800, 0), gaussian_agent(500, 1)
    assert held_out.claimed is not None
    honest = score_belief(fitted, held_out, **QUICK).scores
    sure = score_belief(fitted, replace(held_out, claimed=0.1 * held_out.claimed), **QUICK).scores
    assert (sure["coverage_90"] < honest["coverage_90"] - 0.2).all()
    assert (sure["log_score"] < honest["log_score"] - 1.0).all()
    rng = np.random.default_rng(0)
    noise = [replace(one, latents=rng.normal(size=one.latents.shape)) for one in (fitted, held_out)]
    ignorant = score_belief(*noise, **QUICK)
    assert (ignorant.scores["r2"][1:] < 0.05).all()
    assert ignorant.simulation["exact_from_latent"].value < 0.05
    assert ignorant.simulation["latent_from_exact"].value < 0.05


def test_what_is_lost_is_a_divergence() -> None:
    """By torch's divergence of Gaussians, in coordinates of the task: it does not depend on them."""
    rng = np.random.default_rng(0)
    record = gaussian_agent(6, 0)
    factor = rng.normal(size=(6, 5, 3, 3))
    record = replace(record, exact_covariance=record.exact_covariance + 0.1 * factor @ factor.swapaxes(-1, -2))
    factor = rng.normal(size=(6, 5, 3, 3))
    record = replace(record, claimed=0.1 * np.eye(3) + factor @ factor.swapaxes(-1, -2))
    assert record.claimed is not None
    readout = Readout(rng.normal(size=(3, 3)), rng.normal(size=3))
    residual = np.diag([0.5, 1.0, 2.0])
    numbers = Scores(readout, residual, record).per_trial()
    exact, decoded, total = record.exact_mean, readout(record.latents), record.claimed + residual
    for name, mean, covariance in (
        ("lost", decoded, total),
        ("lost_by_mean", decoded, record.exact_covariance),
        ("lost_by_width", exact, total),
        ("claimed_lost", decoded, record.claimed),
        ("claimed_lost_by_width", exact, record.claimed),
    ):
        np.testing.assert_allclose(numbers[name], divergence(exact, record.exact_covariance, mean, covariance))


def divergence(mean: np.ndarray, covariance: np.ndarray, other: np.ndarray, other_covariance: np.ndarray) -> np.ndarray:
    first, second = (
        th.distributions.MultivariateNormal(th.tensor(m), th.tensor(c))
        for m, c in ((mean, covariance), (other, other_covariance))
    )
    return np.asarray(th.distributions.kl_divergence(first, second))


def test_what_is_lost_is_the_log_score_that_is_missing() -> None:
    """In expectation, also where the exact posterior is no Gaussian; and of nothing wrong nothing is lost."""
    fitted, held_out = oracle_as_agent(2000, seed=0), oracle_as_agent(4000, seed=10_000)
    honest = score_belief(fitted, held_out, **QUICK).scores
    assert all((honest[name] < 0.02).all() for name in LOSSES)
    assert held_out.claimed is not None
    noise = np.random.default_rng(0).normal(scale=0.1, size=held_out.latents.shape)
    blurred = replace(held_out, latents=held_out.latents + noise, claimed=0.4 * held_out.claimed)
    scores = score_belief(fitted, blurred, **QUICK).scores
    assert (scores["lost"] > 0.3).all()
    np.testing.assert_allclose(scores["exact_log_score"] - scores["log_score"], scores["lost"], rtol=0.15)
    # Of the width known in closed form: four directions, each of 0.4 of the variance
    np.testing.assert_allclose(scores["claimed_lost_by_width"], 2 * (1 / 0.4 - 1 + np.log(0.4)), rtol=0.1)


def test_what_the_read_out_cannot_explain() -> None:
    record = gaussian_agent(200, 0)
    readout = fit_readout(record)
    missed = (record.exact_mean - readout(record.latents)).reshape(-1, 3)
    expected = sum(np.outer(row, row) for row in missed) / len(missed)
    np.testing.assert_allclose(unexplained(record, readout), expected, rtol=1e-10)


def test_certain_beliefs_have_scores() -> None:
    """No belief is surer than the floor, and one that is certain and right covers the task."""
    fitted, held_out = gaussian_agent(100, 0), certain(gaussian_agent(50, 1))
    scores = score_belief(fitted, held_out, **QUICK).scores
    assert scores["exact_coverage_50"][-1] == 1.0
    np.testing.assert_allclose(scores["exact_log_score"][-1], 3 * (np.log(100.0) - 0.5 * np.log(2 * np.pi)), rtol=1e-2)
    assert np.isfinite(scores["bias"]).all()


@pytest.mark.parametrize("env_id", TASKS)
@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_small_agents_of_all_tasks(env_id: str, covariance: str, tmp_path: Path) -> None:
    model = small_model(env_id, latent_dim=4, posterior_kwargs={"covariance": covariance})
    before = th.random.get_rng_state()
    result = evaluate_belief(model, env_id, **SMALL)
    assert th.equal(th.random.get_rng_state(), before)
    assert result.steps.tolist() == list(range(6))
    assert all(values.shape == (6,) for values in result.scores.values())
    assert all(
        np.isfinite(result.scores[name]).all() for name in ("bias", "total_variance", "coverage_90", "log_score")
    )
    assert (result.scores["total_variance"] > result.scores["claimed_variance"]).all()
    assert (result.scores["claimed_variance"] > 0).all()
    assert (np.diff(result.scores["exact_variance"]) < 1e-3).all()
    again = evaluate_belief(model, env_id, **SMALL)
    assert result.to_dict() == again.to_dict() == json.loads(json.dumps(result.to_dict(), allow_nan=False))
    check_outputs(result, tmp_path)


def test_intervals_of_coverage() -> None:
    result = score_belief(gaussian_agent(100, 0), gaussian_agent(50, 1), **QUICK)
    for name in ("coverage_50", "coverage_95", "exact_coverage_95"):
        low, high = result.intervals[name][result.selected].T
        value = result.scores[name][result.selected]
        assert ((low >= 0) & (low < value) & (value <= high) & (high <= 1)).all()
    # By hand: 50 of 50 leave 1.96^2 / (50 + 1.96^2) at 95%
    covered = score_belief(gaussian_agent(100, 0), certain(gaussian_agent(50, 1)), **QUICK)
    np.testing.assert_allclose(
        covered.intervals["exact_coverage_50"][-1], (1.0 - 1.96**2 / (50 + 1.96**2), 1.0), atol=1e-4
    )


def certain(record: BeliefRecord) -> BeliefRecord:
    """The record with an exact belief that is certain and right at the last step."""
    mean, covariance = record.exact_mean.copy(), record.exact_covariance.copy()
    mean[:, -1], covariance[:, -1] = record.tasks, 0.0
    return replace(record, exact_mean=mean, exact_covariance=covariance)


def check_outputs(result: BeliefEvaluation, tmp_path: Path) -> None:
    assert len(result.table().splitlines()) == 2 + len(result.selected) + 3
    result.to_csv(tmp_path / "belief.csv")
    with open(tmp_path / "belief.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert float(rows[3]["exact_variance"]) == pytest.approx(result.scores["exact_variance"][3], rel=1e-5)
    assert rows[0]["r2"] == ""


def test_a_point_has_a_mean_only() -> None:
    result = evaluate_belief(small_model(posterior="point"), BANDIT, deterministic=True, **SMALL)
    for name in ("claimed_variance", "total_variance", "coverage_50", "log_score", "lost", "lost_by_width"):
        assert np.isnan(result.scores[name]).all()
    assert np.isfinite(result.scores["r2"][1:]).all()
    assert np.isfinite(result.scores["exact_log_score"]).all()
    assert np.isfinite(result.scores["lost_by_mean"]).all()
    assert " - " in result.table()


def test_normalized_observations_are_normalized_for_the_agent_only() -> None:
    env = VecNormalize(make_vec_env(BANDIT, n_envs=2, seed=0), norm_reward=False)
    model = small_model(env=env)
    env.obs_rms.mean += 0.5
    statistics = env.obs_rms.mean.copy()
    result = evaluate_belief(model, BANDIT, **SMALL)
    np.testing.assert_array_equal(env.obs_rms.mean, statistics)
    assert np.isfinite(result.scores["bias"]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"env_id": "CartPole-v1"}, "env_id must be a task whose exact belief an oracle knows .*, got 'CartPole-v1'"),
        ({"n_trials": 19}, "n_trials must be an integer >= 20, got 19"),
        ({"seed": -1}, "seed"),
        ({"ridge": -1.0}, "ridge"),
        ({"env_kwargs": {"num_envs": 3}}, "env_kwargs"),
        ({"env_kwargs": {"n_arms": 3}}, "model must be an agent for env_id"),
        ({"env_id": "sb3_laplace/GridNavigation-v0"}, "model must be an agent for env_id"),
        ({"model": None}, "model must be a LaplaceRecurrentPPO"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_belief(**{"model": small_model(), "env_id": BANDIT, **arguments})


def test_few_trials_for_the_read_out() -> None:
    with pytest.warns(UserWarning, match="n_trials: a read-out of 20 latent units is fitted on 20 trials"):
        evaluate_belief(small_model(latent_dim=20), BANDIT, **SMALL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate_belief(small_model(latent_dim=19), BANDIT, **SMALL)


def test_a_single_step_has_nothing_to_explain() -> None:
    """Before anything is observed all beliefs are the same, but for rounding."""
    result = evaluate_belief(small_model(), BANDIT, n_trials=40, env_kwargs={"trial_length": 1}, **QUICK)
    assert np.isnan(result.scores["r2"]).all()
    for name in ("exact_from_latent", "latent_from_exact"):
        assert np.isnan(result.scores[name]).all()
        assert np.isnan(result.simulation[name]).all()
    assert result.to_dict()["simulation"]["exact_from_latent"] == {"value": None, "low": None, "high": None}
    assert "by a network: - of its variance" in result.table()


def test_figure(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from sb3_laplace import plot_belief

    agent, point = (score_belief(gaussian_agent(50, 0), record, **QUICK) for record in two_agents())
    figure = plot_belief({"agent": agent, "point": point})
    figure.savefig(tmp_path / "belief.png")
    r2, variance, *coverages, _ = figure.axes
    np.testing.assert_array_equal(r2.lines[1].get_ydata(), point.scores["r2"])
    np.testing.assert_array_equal(variance.lines[0].get_ydata(), agent.scores["total_variance"])
    np.testing.assert_array_equal(coverages[1].lines[0].get_ydata(), agent.scores["coverage_90"])


def two_agents() -> tuple[BeliefRecord, BeliefRecord]:
    record = gaussian_agent(30, 1)
    return record, replace(record, claimed=None)


@pytest.mark.parametrize("env_id", TASKS)
@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_what_is_recorded_is_what_a_loop_finds(env_id: str, covariance: str) -> None:
    """Latents, claims, tasks and exact beliefs after the same observations, by predict and the oracle's own loop."""
    model = small_model(env_id, latent_dim=3, posterior_kwargs={"covariance": covariance})
    rng = np.random.default_rng(0)
    size = TASKS[env_id]
    readout = Readout(rng.normal(size=(3, size)), rng.normal(size=size))
    record = _play(model, env_id, 4, 5, {"trial_length": 5}, deterministic=True, readout=readout)
    assert record.claimed is not None
    make, make_oracle, task_of = _TASKS[env_id]
    env = make(num_envs=4, trial_length=5)
    oracle = make_oracle(env)
    obs, _ = env.reset(seed=np.random.SeedSequence(5).generate_state(4).tolist())
    np.testing.assert_array_equal(record.tasks, task_of(env))
    assert record.tasks.shape == (4, size)
    state, starts = None, np.ones(4, dtype=bool)
    for t in range(5):
        oracle.observe(obs)
        belief = oracle.posterior()
        np.testing.assert_allclose(record.exact_mean[:, t], belief.mean, atol=1e-12)
        np.testing.assert_allclose(record.exact_covariance[:, t], belief.covariance, atol=1e-12)
        actions, state = model.predict(obs, state, starts, deterministic=True)
        posterior = model.policy.posterior(state)
        np.testing.assert_allclose(record.latents[:, t], posterior.mean.numpy(), rtol=1e-4, atol=1e-5)
        for i, sigma in enumerate(posterior.covariance.double().numpy()):
            expected = readout.weights.T @ sigma @ readout.weights
            np.testing.assert_allclose(record.claimed[i, t], expected, rtol=1e-3, atol=1e-3 * np.trace(expected))
        obs, starts = env.step(actions)[0], np.zeros(4, dtype=bool)


def test_the_true_task_is_in_the_exact_posterior() -> None:
    """Once the exact posterior is certain its mean is the task: both count cells, or coefficients, alike."""
    model = small_model("sb3_laplace/FourierRegression-v0")
    record = _play(model, "sb3_laplace/FourierRegression-v0", 20, 0, {"trial_length": 20}, deterministic=False)
    np.testing.assert_allclose(record.exact_mean[:, -1], record.tasks, atol=1e-2)
    model = small_model("sb3_laplace/GridNavigation-v0")
    record = _play(model, "sb3_laplace/GridNavigation-v0", 20, 0, {"trial_length": 60}, deterministic=False)
    certain_of = np.trace(record.exact_covariance[:, -1], axis1=1, axis2=2) < 1e-9
    assert certain_of.any()
    np.testing.assert_array_equal(record.exact_mean[certain_of, -1], record.tasks[certain_of])
    # The goal is never ruled out
    assert ((record.exact_mean * record.tasks[:, None]).sum(-1) > 0).all()
