"""Evaluation on FourierRegression: predictions against a loop, scores against torch, the limit beside the agent."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_laplace import LaplaceRecurrentPPO, RegressionEvaluation, evaluate_regression, make_vec_env
from sb3_laplace.evaluation.gaussian_mixture import GaussianMixture
from sb3_laplace.evaluation.regression import CONTEXTS, _score
from sb3_laplace.evaluation.regression_evaluation import METRICS
from sb3_laplace_envs.tasks.fourier_regression import TEST_QUERY_INTERVALS, FourierRegressionVectorEnv
from tests.helpers import randomize

REGRESSION = "sb3_laplace/FourierRegression-v0"
SMALL: dict[str, Any] = {"n_functions": 3, "n_observed": (0, 1, 4), "n_test_inputs": 5}
POSTERIORS: dict[str, dict[str, Any]] = {
    "projected-full": {"latent_dim": 3, "posterior_kwargs": {"covariance": "full", "prior_std": 0.3}},
    "identity-diagonal-separate-critic": {"shared_lstm": False, "enable_critic_lstm": True},
    "stationary": {"posterior_kwargs": {"factorization": "stationary"}},
    "features-beside": {"latent_dim": 3, "head_inputs": ("features",)},
    "variational": {"posterior": "variational"},
    "gru-two-layers": {"rnn_type": "gru", "n_lstm_layers": 2},
    "gtrxl": {"rnn_type": "gtrxl", "n_lstm_layers": 2, "lstm_kwargs": {"n_heads": 2, "memory_length": 3}},
    "point": {"posterior": "point"},
}


def make_env(**env_kwargs: Any) -> VecEnv:
    return make_vec_env(REGRESSION, n_envs=2, seed=0, env_kwargs=env_kwargs)


def small_model(env: VecEnv | None = None, **policy_kwargs: Any) -> LaplaceRecurrentPPO:
    kwargs = {"lstm_hidden_size": 6, "net_arch": [8], "shared_lstm": True, "enable_critic_lstm": False}
    model = LaplaceRecurrentPPO(
        "LaplaceLstmPolicy",
        make_env() if env is None else env,
        policy_kwargs={**kwargs, **policy_kwargs},
        seed=0,
        device="cpu",
    )
    randomize(model.policy, std=0.3)
    return model


def seeds_of(n_functions: int, seed: int = 0) -> list[int]:
    return np.random.SeedSequence(seed).generate_state(n_functions).tolist()


def naive_predictions(
    model: LaplaceRecurrentPPO, function: int, x: float, n_observed: tuple[int, ...], normalizer: VecNormalize | None
) -> list[float]:
    """One function and one test input, through predict() alone, on the single environment."""
    env = FourierRegressionVectorEnv(1, n_observed[-1] + 1)
    obs, _ = env.reset(seed=[seeds_of(function + 1)[function]])
    state, predictions = None, []
    for n in range(n_observed[-1] + 1):
        start = np.array([n == 0])
        queries = [obs.copy(), obs.copy()]
        queries[1][0, 2] = x
        if normalizer is not None:
            queries = [normalizer.normalize_obs(query) for query in queries]
        (action, following), (prediction, _) = (
            model.predict(query, state, episode_start=start, deterministic=True) for query in queries
        )
        if n in n_observed:
            predictions.append(env.action_scale * float(prediction[0, 0]))
        state = following
        if n < n_observed[-1]:
            obs, *_ = env.step(action)
    return predictions


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_equals_a_loop_over_functions_and_inputs(posterior: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Chunks that end within a function, and one that is not full
    monkeypatch.setattr("sb3_laplace.evaluation.regression._ROWS", 4)
    model = small_model(**POSTERIORS[posterior])
    evaluation = evaluate_regression(model, **SMALL)
    _check_mse(model, evaluation, None)
    for name in METRICS:
        finite = np.isfinite(evaluation.agent[name]).all()
        assert finite == (posterior != "point" or name not in ("entropy", "kl")), name


def _check_mse(model: LaplaceRecurrentPPO, evaluation: RegressionEvaluation, normalizer: VecNormalize | None) -> None:
    for function in range(3):
        targets = evaluation.examples.targets[function]
        predictions = np.array(
            [naive_predictions(model, function, x, SMALL["n_observed"], normalizer) for x in evaluation.test_inputs]
        )
        expected = np.square(predictions - targets[:, None]).mean(0)
        np.testing.assert_allclose(evaluation.agent["mse"][function], expected, rtol=1e-4)


def test_normalized_observations() -> None:
    env = VecNormalize(make_env())
    model = small_model(env)
    env.reset()
    for _ in range(3):
        env.step(np.zeros((2, 1), np.float32))
    mean = env.obs_rms.mean.copy()
    evaluation = evaluate_regression(model, **SMALL)
    _check_mse(model, evaluation, env)
    np.testing.assert_array_equal(env.obs_rms.mean, mean)
    env.norm_obs = False
    assert not np.allclose(evaluate_regression(model, **SMALL).agent["mse"], evaluation.agent["mse"])


def test_a_linear_head_has_the_moments_of_the_posterior() -> None:
    """Without hidden layers the action is w z + b, and with many draws its moments are known; so is its density."""
    model = small_model(
        latent_dim=3, net_arch=[], posterior_kwargs={"covariance": "full", "prior_std": 0.3}, log_std_init=-1.0
    )
    arguments = {"n_functions": 2, "n_observed": (0,), "n_test_inputs": 2}
    evaluation = evaluate_regression(model, n_posterior_samples=20_000, **arguments)
    obs, _ = (env := FourierRegressionVectorEnv(2, 1)).reset(seed=seeds_of(2))
    scale = env.action_scale
    for j, x in enumerate(evaluation.test_inputs):
        obs[:, 2] = x
        _, state = model.predict(obs, episode_start=np.ones(2))
        posterior = model.policy.posterior(state)
        weight, bias = model.policy.action_net.weight[0], model.policy.action_net.bias[0]
        mean = (posterior.mean @ weight + bias).detach()
        variance = ((posterior.covariance @ weight) @ weight + model.policy.log_std.exp().square()).detach()
        np.testing.assert_allclose(evaluation.examples.mean[:, 0, j], scale * mean, atol=0.02)
        width = evaluation.examples.bands[:, 0, j, 3] - evaluation.examples.bands[:, 0, j, 0]
        np.testing.assert_allclose(width, 2 * 1.96 * scale * variance.sqrt(), rtol=0.02)
    # K = 0: the policy's own density of the target, in the units of y
    at_mean = evaluate_regression(model, n_posterior_samples=0, **arguments)
    nll = []
    for j, x in enumerate(evaluation.test_inputs):
        obs[:, 2] = x
        distribution, _ = model.policy.get_distribution(
            th.as_tensor(obs), model.policy.initial_states(2).pi, th.ones(2), deterministic=True
        )
        target = th.as_tensor(evaluation.examples.targets[:, j : j + 1] / scale)
        nll.append(np.log(scale) - distribution.log_prob(target).detach().numpy())
    for name in ("nll_mixture", "nll_gaussian"):
        np.testing.assert_allclose(at_mean.agent[name][:, 0], np.mean(nll, axis=0), rtol=1e-5)
    np.testing.assert_allclose(at_mean.agent["mse"], at_mean.agent["mse_mixture"])


def test_entropy_and_kl_are_those_of_the_trial() -> None:
    model = small_model(latent_dim=3, posterior_kwargs={"covariance": "full", "prior_std": 0.3})
    evaluation = evaluate_regression(model, **SMALL)
    env = FourierRegressionVectorEnv(3, 5)
    obs, _ = env.reset(seed=seeds_of(3))
    state, previous = None, model.policy.latent_layer.prior(3)
    for n in range(5):
        action, state = model.predict(obs, state, episode_start=np.full(3, n == 0), deterministic=True)
        posterior = model.policy.posterior(state)
        if n in SMALL["n_observed"]:
            index = SMALL["n_observed"].index(n)
            np.testing.assert_allclose(evaluation.agent["entropy"][:, index], posterior.entropy(), rtol=1e-4)
            np.testing.assert_allclose(
                evaluation.agent["kl"][:, index], posterior.kl(previous).detach(), rtol=1e-3, atol=1e-4
            )
        obs, *_ = env.step(action)
        previous = posterior


def test_actions_are_clipped_as_the_environment_clips_them() -> None:
    model = small_model()
    with th.no_grad():
        model.policy.action_net.bias.fill_(7.0)
    evaluation = evaluate_regression(model, **SMALL)
    expected = np.square(19 / 6 - evaluation.examples.targets).mean(1)
    np.testing.assert_allclose(evaluation.agent["mse"], np.repeat(expected[:, None], 3, axis=1))
    assert (evaluation.agent["mse_mixture"] > 100).all()


def test_a_model_converted_from_recurrent_ppo_and_other_units() -> None:
    """The same predictions of y whether actions are in units of max_y, or of y and the head 19/6 times as large."""
    kwargs = {"lstm_hidden_size": 6, "net_arch": []}
    evaluations = []
    for env_kwargs in ({}, {"action_scale": 1.0}):
        trained = RecurrentPPO("MlpLstmPolicy", make_env(**env_kwargs), policy_kwargs=kwargs, seed=0, device="cpu")
        with th.no_grad():
            for parameter in trained.policy.lstm_actor.parameters():
                parameter.mul_(3.0)
            # The previous action is blotted out, which is in other units
            trained.policy.lstm_actor.weight_ih_l0[:, 3] = 0.0
            trained.policy.action_net.weight.mul_(100.0)
            if env_kwargs:
                trained.policy.action_net.weight.mul_(19 / 6)
                trained.policy.log_std.add_(np.log(19 / 6))
        model = LaplaceRecurrentPPO.from_recurrent_ppo(trained)
        evaluations.append(evaluate_regression(model, env_kwargs=env_kwargs, **SMALL))
    for name in METRICS:
        a, b = (evaluation.agent[name] for evaluation in evaluations)
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4, err_msg=name)


def test_seeds_and_contexts() -> None:
    model = small_model()
    before = th.random.get_rng_state()
    first, again, other = (evaluate_regression(model, seed=seed, **SMALL) for seed in (3, 3, 4))
    assert th.equal(th.random.get_rng_state(), before)
    for name in METRICS:
        np.testing.assert_array_equal(first.agent[name], again.agent[name])
    assert not np.allclose(first.examples.targets, other.examples.targets)
    test = evaluate_regression(model, context="test", seed=3, **SMALL)
    np.testing.assert_array_equal(test.examples.targets, first.examples.targets)
    np.testing.assert_allclose(first.examples.pairs[0, :, 1], _evaluate(first, 0), rtol=1e-6)
    x = test.examples.pairs[..., 0]
    assert np.logical_or.reduce([(low <= x) & (x <= high) for low, high in TEST_QUERY_INTERVALS]).all()
    x = first.examples.pairs[..., 0]
    assert not np.logical_or.reduce([(low <= x) & (x <= high) for low, high in TEST_QUERY_INTERVALS]).all()


def _evaluate(evaluation: RegressionEvaluation, function: int) -> np.ndarray:
    env = FourierRegressionVectorEnv(function + 1)
    env.reset(seed=seeds_of(function + 1, evaluation.settings["seed"]))
    return env.evaluate(evaluation.examples.pairs[function, :, 0])[function]


# -- mixtures -----------------------------------------------------------------------------------------------


def random_mixture(n_components: int, *shape: int) -> GaussianMixture:
    generator = th.Generator().manual_seed(1)
    means = th.randn(n_components, *shape, generator=generator, dtype=th.float64)
    stds = 0.1 + th.rand(n_components, *shape, generator=generator, dtype=th.float64)
    return GaussianMixture(means, stds)


def test_mixture_against_torch() -> None:
    mixture = random_mixture(7, 11, 2)
    means, stds = mixture.means.movedim(0, -1), mixture.stds.movedim(0, -1)
    weights = th.distributions.Categorical(th.ones_like(means))
    expected = th.distributions.MixtureSameFamily(weights, th.distributions.Normal(means, stds))
    value = th.linspace(-3, 3, 22, dtype=th.float64).view(11, 2)
    th.testing.assert_close(mixture.log_prob(value), expected.log_prob(value))
    th.testing.assert_close(mixture.cdf(value), expected.cdf(value))
    th.testing.assert_close(mixture.mean, expected.mean)
    th.testing.assert_close(mixture.variance, expected.variance)
    moment_matched = th.distributions.Normal(expected.mean, expected.variance.sqrt())
    th.testing.assert_close(mixture.moment_matched().log_prob(value), moment_matched.log_prob(value))
    for probability in (0.025, 0.25, 0.5, 0.975):
        th.testing.assert_close(mixture.cdf(mixture.quantile(probability)), th.full_like(value, probability))


def test_coverage_of_a_predictive_that_is_right() -> None:
    mixture = random_mixture(5, 200, 100)
    component = th.randint(5, (1, 200, 100))
    truth = th.normal(mixture.means.gather(0, component), mixture.stds.gather(0, component))[0]
    scores = _score(np.zeros((200, 100)), mixture, truth.numpy())
    for level in (50, 90, 95):
        assert scores[f"coverage_{level}"].mean() == pytest.approx(level / 100, abs=0.015)
    narrow = GaussianMixture(mixture.means, 0.1 * mixture.stds)
    assert _score(np.zeros((200, 100)), narrow, truth.numpy())["coverage_90"].mean() < 0.8


# -- the limit ----------------------------------------------------------------------------------------------


def test_limit_beside_the_agent() -> None:
    evaluation = evaluate_regression(
        small_model(), n_functions=64, n_observed=(0, 3, 5, 10), n_test_inputs=20, n_posterior_samples=2
    )
    mse = evaluation.limit["mse"].mean(0)
    np.testing.assert_allclose(mse, [0.552, 0.241, 0.087, 0.0], atol=0.15)
    assert (np.diff(mse) < 0).all()
    assert evaluation.limit["coverage_50"][:, -1].tolist() == [1.0] * 64


# -- results ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluation() -> RegressionEvaluation:
    return evaluate_regression(small_model(), context="test", **SMALL)


def test_shapes(evaluation: RegressionEvaluation) -> None:
    assert set(evaluation.agent) == set(METRICS)
    assert set(evaluation.limit) == set(METRICS) - {"entropy", "kl"}
    for scores in (evaluation.agent, evaluation.limit):
        assert {array.shape for array in scores.values()} == {(3, 3)}
    shapes = {name: array.shape for name, array in evaluation.examples._asdict().items()}
    assert shapes["targets"] == (3, 5)
    assert shapes["pairs"] == (3, 4, 2)
    assert shapes["bands"] == (3, 3, 5, 4)
    assert {shapes[name] for name in ("mean", "limit_mean", "limit_std")} == {(3, 3, 5)}


def test_csv(evaluation: RegressionEvaluation, tmp_path: Path) -> None:
    evaluation.to_csv(tmp_path / "evaluation.csv")
    with open(tmp_path / "evaluation.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["n_observed"]) for row in rows] == [
        (method, n) for method in ("agent", "bayesian_linear_regression") for n in ("0", "1", "4")
    ]
    assert {row["context"] for row in rows} == {"test"}
    for i, row in enumerate(rows):
        scores = (evaluation.agent if i < 3 else evaluation.limit).get("nll_mixture")
        assert scores is not None
        assert float(row["nll_mixture"]) == pytest.approx(scores[:, i % 3].mean(), rel=1e-6)
        assert float(row["nll_mixture_se"]) == pytest.approx(scores[:, i % 3].std(ddof=1) / 3**0.5, rel=1e-6)
        assert (row["entropy"] == "") == (i >= 3)


def test_table(evaluation: RegressionEvaluation) -> None:
    title, head, *lines = evaluation.table().splitlines()
    assert "3 functions, 5 test inputs, context: test, 30 posterior samples" in title
    assert [line.split()[0] for line in lines] == ["0", "1", "4"]
    assert {len(line) for line in (head, *lines)} == {len(head)}
    assert f"{evaluation.agent['mse'][:, 1].mean():.4f}" in lines[1]
    assert f"{evaluation.limit['mse'][:, 1].mean():.4f}" in lines[1]


def test_save_and_load(evaluation: RegressionEvaluation, tmp_path: Path) -> None:
    evaluation.save(tmp_path / "evaluation")
    loaded = RegressionEvaluation.load(tmp_path / "evaluation")
    assert loaded.settings == evaluation.settings
    assert loaded.table() == evaluation.table()
    for ours, theirs in zip(loaded.examples, evaluation.examples, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    (tmp_path / "text.npz").write_text("no evaluation")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    for name in ("text.npz", "other.npz"):
        with pytest.raises(ValueError, match=rf"{name}' is no evaluation"):
            RegressionEvaluation.load(tmp_path / name)


@pytest.mark.parametrize("posterior", ["laplace", "point"])
def test_plots(posterior: str) -> None:
    pytest.importorskip("matplotlib")
    from sb3_laplace import plot_regression_functions, plot_regression_scores
    from sb3_laplace.plots.traces import to_image

    evaluation = evaluate_regression(small_model(posterior=posterior), **SMALL)
    functions, scores = plot_regression_functions(evaluation), plot_regression_scores({"agent": evaluation})
    # 0 and 1 of the numbers that are shown; seven panels and the legend's
    assert [axes.get_title() for axes in functions.axes[:3]] == ["0 pairs", "1 pair", ""]
    assert len(functions.axes) == 6
    assert len(scores.axes) == 8
    for figure in (functions, scores):
        assert to_image(figure).std() > 10


# -- bad input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_functions": 1}, "n_functions must be an integer >= 2, got 1"),
        ({"n_observed": ()}, r"n_observed must hold whole numbers >= 0 in ascending order, got \(\)"),
        ({"n_observed": (0, 3, 1)}, r"ascending order, got \(0, 3, 1\)"),
        ({"n_observed": (1, 1)}, r"ascending order, got \(1, 1\)"),
        ({"n_observed": (-1, 2)}, "n_observed must be an integer >= 0, got -1"),
        ({"n_observed": 5}, "n_observed must hold whole numbers >= 0 in ascending order, got 5"),
        ({"n_observed": (0.5,)}, "n_observed must be an integer >= 0, got 0.5"),
        ({"n_test_inputs": 0}, "n_test_inputs must be an integer >= 1, got 0"),
        ({"n_posterior_samples": -1}, "n_posterior_samples must be an integer >= 0, got -1"),
        ({"context": "ood"}, "context must be 'train' or 'test', got 'ood'"),
        ({"seed": -1}, "seed must be an integer >= 0, got -1"),
        ({"env_kwargs": {"trial_length": 5}}, r"env_kwargs must not hold \['trial_length'\]"),
        ({"env_kwargs": {"n_frequencies": 0}}, "n_frequencies must be an integer >= 1"),
        ({"env_kwargs": {"n_frequencies": 2}}, r"(?s)its observation space is Box.*the task's Box.*env_kwargs"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_regression(small_model(), **{**SMALL, **arguments})


def test_agents_of_something_else() -> None:
    bandit = LaplaceRecurrentPPO("LaplaceLstmPolicy", make_vec_env("sb3_laplace/DirichletBandit-v0", n_envs=2))
    with pytest.raises(ValueError, match=r"model must be an agent for FourierRegression: its observation space is Box"):
        evaluate_regression(bandit)
    recurrent_ppo = RecurrentPPO("MlpLstmPolicy", make_env())
    with pytest.raises(
        ValueError, match=r"model must be a LaplaceRecurrentPPO, got a RecurrentPPO; .*from_recurrent_ppo"
    ):
        evaluate_regression(recurrent_ppo)  # type: ignore[arg-type]
    squashed = LaplaceRecurrentPPO(
        "LaplaceLstmPolicy", make_env(), use_sde=True, policy_kwargs={"squash_output": True}, device="cpu"
    )
    with pytest.raises(ValueError, match="got policy_kwargs with squash_output=True"):
        evaluate_regression(squashed)


def test_both_contexts_show_what_the_task_shows() -> None:
    """An agent takes observations of either context: the spaces are the same."""
    train, test = (FourierRegressionVectorEnv(2, query_intervals=one) for one in CONTEXTS.values())
    assert train.single_observation_space == test.single_observation_space
