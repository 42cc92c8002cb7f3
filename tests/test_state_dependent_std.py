"""The standard deviation of Gaussian actions as an output of the actor."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv
from torch.nn.utils.stateless import _reparametrize_module

from sb3_laplace import LaplaceRecurrentPPO, evaluate_regression, make_vec_env
from sb3_laplace.policies.distributions import StateDependentLogStd
from tests.helpers import ACTION_SPACES, CRITICS, RandomEnv, make_policy, randomize
from tests.target_env import losses_of, target_env
from tests.test_laplace_recurrent_ppo import collect, random_vec_env, small_model

BOX = ACTION_SPACES["box"]
POSTERIORS: dict[str, dict[str, Any]] = {
    "point": {"posterior": "point"},
    "mean": {"n_posterior_samples": 0},
    "one draw": {"n_posterior_samples": 1, "posterior_kwargs": {"prior_std": 1.0}},
    "four draws": {"n_posterior_samples": 4, "latent_dim": 3, "posterior_kwargs": {"prior_std": 1.0}},
    "variational": {"posterior": "variational", "n_posterior_samples": 2},
}


def model_with_std(env: Any = None, policy_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> LaplaceRecurrentPPO:
    """A small model whose standard deviations differ from step to step."""
    model = small_model(
        env or random_vec_env(action_space=BOX),
        policy_kwargs={"state_dependent_std": True, **(policy_kwargs or {})},
        **kwargs,
    )
    randomize(model.policy)
    return model


def evaluate(model: LaplaceRecurrentPPO) -> tuple[Any, Any]:
    """A minibatch, and the policy's evaluation of it."""
    samples = next(iter(model.rollout_buffer.get(None)))
    evaluation = model.policy.evaluate_sequences(
        samples.observations, samples.actions, samples.lstm_states, samples.episode_starts, samples.noise
    )
    return samples, evaluation


def oracle(model: LaplaceRecurrentPPO, evaluation: Any) -> th.distributions.Distribution:
    """The K components as torch has them, batch (K, B)."""
    policy = model.policy
    codes = policy.mlp_extractor.forward_actor(evaluation.posterior.latents.flatten(1, 2))
    log_std = codes @ policy.log_std.weight.T + policy.log_std.bias
    # The bounds of SB3's SAC
    std = log_std.clamp(-20, 2).exp()
    return th.distributions.Independent(th.distributions.Normal(policy.action_net(codes), std), 1)


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_log_probabilities_and_entropies_are_torchs(posterior: str) -> None:
    model = model_with_std(policy_kwargs=POSTERIORS[posterior])
    collect(model)
    samples, evaluation = evaluate(model)
    components = oracle(model, evaluation)
    per_component = components.log_prob(samples.actions)
    expected = per_component.logsumexp(0) - math.log(len(per_component))
    assert components.base_dist.stddev.std() > 0.1
    th.testing.assert_close(evaluation.log_prob, expected, rtol=1e-5, atol=1e-5)
    th.testing.assert_close(evaluation.entropy, components.entropy().mean(0), rtol=1e-5, atol=1e-5)
    # The ratio is one before the first gradient step
    th.testing.assert_close(evaluation.log_prob, samples.old_log_prob, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("posterior", ["point", "four draws"])
def test_target_loss_is_the_likelihood_of_the_mixture(posterior: str) -> None:
    model = model_with_std(target_env(action_space=BOX), POSTERIORS[posterior], target_coef=1.0)
    collect(model)
    samples, evaluation = evaluate(model)
    per_component = oracle(model, evaluation).log_prob(samples.columns["targets"])
    expected = -(per_component.logsumexp(0) - math.log(len(per_component))).mean()
    assert losses_of(model)["target_loss"] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("posterior", ["point", "four draws"])
def test_gradients_are_those_of_finite_differences(posterior: str) -> None:
    """Of log-probabilities and entropies with respect to every parameter of the actor's last layers."""
    model = model_with_std(policy_kwargs=POSTERIORS[posterior])
    collect(model)
    samples = next(iter(model.rollout_buffer.get(None)))
    policy = model.policy.double()
    actions = samples.actions[:6].double()
    latents = th.randn(4 if posterior == "four draws" else 1, 6, policy.latent_layer.latent_dim, dtype=th.float64)

    def statistics(*parameters: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        names = [f"{part}.{kind}" for part in ("action_net", "log_std") for kind in ("weight", "bias")]
        with _reparametrize_module(policy, dict(zip(names, parameters, strict=True))):
            distribution = policy._mixture(latents)
            return distribution.log_prob(actions), distribution.entropy()

    layers = (policy.action_net, policy.log_std)
    parameters = [part.detach().clone().requires_grad_() for layer in layers for part in layer.parameters()]
    assert th.autograd.gradcheck(statistics, parameters)


def test_standard_deviations_are_clamped() -> None:
    layer = StateDependentLogStd(1, th.zeros(2))
    with th.no_grad():
        layer.weight.fill_(1.0)
    codes = th.tensor([[-100.0], [-20.0], [0.5], [2.0], [100.0]])
    assert layer(codes)[:, 0].tolist() == [-20.0, -20.0, 0.5, 2.0, 2.0]


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("ortho_init", [True, False])
def test_starts_as_the_agent_with_one_standard_deviation(critic: str, ortho_init: bool) -> None:
    """The same seed is the same agent: only training makes the standard deviations differ."""
    env = random_vec_env(action_space=BOX)
    models = [
        small_model(
            env,
            seed=3,
            policy_kwargs={
                "state_dependent_std": learned,
                "log_std_init": -1.5,
                "ortho_init": ortho_init,
                **CRITICS[critic],
            },
        )
        for learned in (True, False)
    ]
    ours, theirs = (model.policy.state_dict() for model in models)
    assert set(ours) ^ set(theirs) == {"log_std", "log_std.weight", "log_std.bias"}
    assert all(th.equal(ours[name], theirs[name]) for name in set(ours) & set(theirs))
    actions, log_probs = [], []
    for model in models:
        th.manual_seed(0)
        policy = model.policy
        step = policy.act(th.ones(5, 4), policy.initial_states(5), th.ones(5))
        actions.append(step.actions)
        log_probs.append(step.log_prob)
    th.testing.assert_close(actions[0], actions[1])
    th.testing.assert_close(log_probs[0], log_probs[1])


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_training_and_saving(posterior: str, tmp_path: Path) -> None:
    model = model_with_std(policy_kwargs=POSTERIORS[posterior], ent_coef=0.01)
    before = model.policy.log_std.weight.clone()
    model.learn(72)
    assert not th.equal(before, model.policy.log_std.weight)
    logged = model.logger.name_to_value
    assert math.isfinite(logged["train/std"])
    model.save(tmp_path / "model")
    observation = np.ones((3, 4), np.float32)
    for weights_only in (True, False):
        loaded = LaplaceRecurrentPPO.load(tmp_path / "model", device="cpu", weights_only=weights_only)
        for deterministic in (True, False):
            actions = []
            for one in (model, loaded):
                th.manual_seed(0)
                actions.append(one.predict(observation, deterministic=deterministic)[0])
            np.testing.assert_array_equal(*actions)


def test_logged_std_is_the_mean_over_steps() -> None:
    """Of a rollout that is one minibatch, whose sequences differ in length: padding does not count."""
    model = model_with_std(n_steps=7, sequence_length=4, batch_size=100, n_epochs=1)
    collect(model)
    samples, evaluation = evaluate(model)
    assert samples.mask is not None
    expected = oracle(model, evaluation).base_dist.stddev[0][samples.mask].mean()
    assert losses_of(model)["std"] == pytest.approx(float(expected), rel=1e-5)


def test_conversion_keeps_the_layer() -> None:
    point = model_with_std(policy_kwargs={"posterior": "point", "latent_dim": 3})
    converted = LaplaceRecurrentPPO.from_recurrent_ppo(point, posterior_kwargs={"prior_std": 1.0})
    assert th.equal(converted.policy.log_std.weight, point.policy.log_std.weight)
    observation = np.ones((3, 4), np.float32)
    actions = []
    for model in (point, converted):
        th.manual_seed(0)
        actions.append(model.predict(observation)[0])
    np.testing.assert_allclose(*actions, rtol=1e-5)


def test_learns_the_noise_of_each_state() -> None:
    """Targets with noise of standard deviation exp(-1) or exp(-3), as the observation says."""

    class Noisy(RandomEnv):
        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
            noise = np.exp(-1 if self.obs[0] > 0 else -3) * self.np_random.normal(size=2)
            self.obs, *rest, _ = super().step(action)
            return self.obs, *rest, {"target": noise}

        def reset(self, **kwargs: Any) -> tuple[Any, dict]:
            self.obs, info = super().reset(**kwargs)
            return self.obs, info

    env = DummyVecEnv([lambda: Noisy(action_space=BOX)] * 8)
    env.seed(0)
    kwargs = {"state_dependent_std": True, "posterior": "point", "lstm_hidden_size": 16, "head_inputs": ("features",)}
    model = small_model(
        env,
        n_steps=20,
        batch_size=80,
        n_epochs=4,
        target_coef=1.0,
        policy_coef=0.0,
        learning_rate=1e-2,
        policy_kwargs=kwargs,
    )
    model.learn(160 * 40)
    obs = th.rand(2000, 4, generator=th.Generator().manual_seed(0)) * 2 - 1
    # Away from the edge, where no network is sharp
    for side, expected in ((obs[:, 0] > 0.3, -1.0), (obs[:, 0] < -0.3, -3.0)):
        states = model.policy.initial_states(int(side.sum()))
        with th.no_grad():
            distribution, _ = model.policy.get_distribution(obs[side], states.pi, th.ones(int(side.sum())))
        assert distribution.distribution.stddev.log().mean() == pytest.approx(expected, abs=0.35)


def test_prediction_of_regression_has_the_std_of_the_state() -> None:
    """The predictive variance is the mean of the components' variances and that of their means."""
    env = make_vec_env("sb3_laplace/FourierRegression-v0", n_envs=4, seed=0)
    model = model_with_std(env, {"posterior": "point"}, n_steps=4)
    results = []
    for shift in (0.0, -3.0):
        with th.no_grad():
            model.policy.log_std.weight.zero_()
            model.policy.log_std.bias.fill_(shift)
        results.append(evaluate_regression(model, 4, (0, 2), 20, 0))
    wide, narrow = (result.agent["coverage_95"].mean() for result in results)
    assert wide > narrow
    np.testing.assert_allclose(*(result.agent["mse"] for result in results))


@pytest.mark.parametrize(
    ("space", "kwargs", "message"),
    [
        (spaces.Discrete(3), {}, r"state_dependent_std=True needs Gaussian actions, of a Box space, got Discrete\(3\)"),
        (spaces.MultiBinary(3), {}, r"state_dependent_std=True needs Gaussian actions.*got MultiBinary\(3\)"),
        (BOX, {"use_sde": True, "n_posterior_samples": 0}, r"state_dependent_std=True does not go with use_sde=True"),
        (BOX, {"log_std_init": 2.5}, "log_std_init must lie between -20 and 2, .*, got 2.5"),
    ],
)
def test_what_does_not_go_with_it(space: spaces.Space, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_policy(action_space=space, state_dependent_std=True, **kwargs)
