"""A user's own policy, extractor or action: what SB3's documentation shows how to override is called here too."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    Distribution,
    MultiCategoricalDistribution,
)
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, MlpExtractor

from sb3_laplace import LaplaceLstmPolicy, LaplaceRecurrentPPO, calibrate_prior_std, make_vec_env, posterior_trace
from tests.helpers import make_policy
from tests.test_laplace_recurrent_ppo import collect, largest_log_ratio, random_vec_env, small_model


def test_states_of_both_kinds() -> None:
    """RecurrentPPO's (h, c) is a state whose posterior is the prior; ours, and what predict returns, are taken too."""
    policy = make_policy(latent_dim=3, n_posterior_samples=0, posterior_kwargs={"covariance": "full"})
    obs, starts = th.rand(2, 4), th.zeros(2)
    own = policy.initial_states(2)
    step = policy.act(obs, own, starts)
    theirs = RNNStates(own.pi.core, own.vf.core)
    for states in (own, theirs):
        th.testing.assert_close(policy.act(obs, states, starts).values, step.values)
        th.testing.assert_close(policy.evaluate_actions(obs, step.actions, states, starts)[1], step.log_prob)
        th.testing.assert_close(policy.predict_values(obs, states.vf, starts), step.values)
        _, after = policy.get_distribution(obs, states.pi, starts)
        th.testing.assert_close(after.flatten(), step.states.pi.flatten())
    _, after = policy.get_distribution(obs, own.pi.flatten(), starts)
    th.testing.assert_close(after.flatten(), step.states.pi.flatten())
    policy.forward(obs, own, starts)
    with pytest.raises(ValueError, match=r"forward\(\) takes the states of initial_states\(n_envs\), got"):
        policy.forward(obs, theirs, starts)


class ScaledPolicy(LaplaceLstmPolicy):
    """Overrides what SB3's documentation shows how to."""

    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = MlpExtractor(self.lstm_output_dim, [5], th.nn.Tanh, self.device)

    def extract_features(self, obs: Any, features_extractor: Any = None) -> th.Tensor:
        return 2.0 * super().extract_features(obs, features_extractor)

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Distribution:
        logits = self.action_net(latent_pi).clone()
        logits[:, 1] = -th.inf
        return CategoricalDistribution(3).proba_distribution(logits)


@pytest.mark.parametrize("n_samples", [0, 1, 3])
def test_overrides_that_work(n_samples: int) -> None:
    kwargs = {"latent_dim": 8, "n_posterior_samples": n_samples, "net_arch": None}
    model = small_model(policy=ScaledPolicy, policy_kwargs=kwargs, ent_coef=0.01, n_epochs=1)
    assert model.policy.mlp_extractor.latent_dim_pi == 5
    collect(model)
    assert largest_log_ratio(model) < 1e-5
    assert not (model.rollout_buffer.actions == 1).any()
    model.learn(108)
    assert np.isfinite(model.policy.parameters_to_vector()).all()
    obs = model.env.reset()
    for deterministic in (True, False):
        actions, _ = model.predict(obs, deterministic=deterministic)
        assert not (actions == 1).any()
    doubled = model.policy._actor_features(th.ones(1, 4))
    th.testing.assert_close(doubled, th.full((1, 4), 2.0))


@pytest.mark.parametrize("share", [True, False])
def test_override_of_extract_features_with_separate_extractors(share: bool) -> None:
    class Doubled(LaplaceLstmPolicy):
        def extract_features(self, obs: Any, features_extractor: Any = None) -> Any:
            features = super().extract_features(obs, features_extractor)
            return 2.0 * features if self.share_features_extractor else tuple(2.0 * part for part in features)

    policy = Doubled(
        spaces.Box(-1, 1, (4,)),
        spaces.Discrete(2),
        lambda _: 1e-3,
        lstm_hidden_size=8,
        share_features_extractor=share,
    )
    for features in policy._features(th.ones(1, 4)):
        th.testing.assert_close(features, th.full((1, 4), 2.0))


@pytest.mark.parametrize("name", ["forward", "evaluate_actions", "_predict", "_process_sequence"])
def test_overrides_that_would_never_be_called(name: str) -> None:
    policy_class = type("Own", (LaplaceLstmPolicy,), {name: lambda self, *args: None, "__module__": "mine"})
    with pytest.raises(ValueError, match=rf"Own\.{name} would never be called: LaplaceRecurrentPPO "):
        small_model(policy=policy_class)


def test_box_actions_without_dimensions() -> None:
    model = small_model(random_vec_env(action_space=spaces.Box(-1.0, 1.0, (), np.float32)))
    collect(model)
    assert largest_log_ratio(model) < 1e-5
    model.learn(36)
    assert model.predict(model.env.reset())[0].shape == (3,)


def test_an_extractor_that_leaves_a_dimension_of_one() -> None:
    class Columns(BaseFeaturesExtractor):
        def __init__(self, observation_space: spaces.Box) -> None:
            super().__init__(observation_space, features_dim=4)

        def forward(self, observations: th.Tensor) -> th.Tensor:
            return observations.unsqueeze(1)

    model = small_model(policy_kwargs={"features_extractor_class": Columns})
    collect(model)
    assert largest_log_ratio(model) < 1e-5
    model.learn(36)


def test_learning_in_double_precision() -> None:
    model = small_model(policy_kwargs={"latent_dim": 3, "posterior_kwargs": {"covariance": "full"}}, kl_coef=0.01)
    model.policy.double()
    collect(model)
    assert largest_log_ratio(model) < 1e-6
    model.learn(72)
    assert model.policy.value_net.weight.dtype == th.float64


class MaskedChoices(LaplaceLstmPolicy):
    """The last value of each of three choices is never taken."""

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Distribution:
        logits = self.action_net(latent_pi).clone()
        logits[:, [2, 4, 8]] = -th.inf
        return MultiCategoricalDistribution([3, 2, 4]).proba_distribution(logits)


class MaskedBits(LaplaceLstmPolicy):
    """The first of three bits is always 0, the last always 1."""

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Distribution:
        logits = self.action_net(latent_pi).clone()
        logits[:, 0], logits[:, 2] = -th.inf, th.inf
        return BernoulliDistribution(3).proba_distribution(logits)


@pytest.mark.parametrize("n_samples", [0, 1, 3])
@pytest.mark.parametrize(
    ("policy", "action_space", "is_possible"),
    [
        (MaskedChoices, spaces.MultiDiscrete([3, 2, 4]), lambda actions: actions < [2, 1, 3]),
        (MaskedBits, spaces.MultiBinary(3), lambda actions: actions[:, [0, 2]] == [0, 1]),
    ],
)
def test_masked_actions(
    policy: type[LaplaceLstmPolicy],
    action_space: spaces.Space,
    is_possible: Callable[[np.ndarray], np.ndarray],
    n_samples: int,
) -> None:
    model = small_model(
        random_vec_env(action_space=action_space),
        policy=policy,
        policy_kwargs={"latent_dim": 8, "n_posterior_samples": n_samples},
        ent_coef=0.01,
        n_epochs=2,
    )
    collect(model)
    assert largest_log_ratio(model) < 1e-5
    model.learn(108)
    assert np.isfinite(model.policy.parameters_to_vector()).all()
    obs = model.env.reset()
    for deterministic in (True, False):
        actions, _ = model.predict(obs, deterministic=deterministic)
        assert is_possible(actions).all()


class UnmaskedPolicy(LaplaceLstmPolicy):
    """Overrides methods that have an argument for masks of actions, and has none."""

    def act(self, obs: Any, lstm_states: Any, episode_starts: Any, deterministic: bool = False) -> Any:  # type: ignore[override]
        return super().act(obs, lstm_states, episode_starts, deterministic)

    def evaluate_sequences(
        self, obs: Any, actions: Any, states: Any, starts: Any, noise: Any = None, memory: Any = ()
    ) -> Any:  # type: ignore[override]
        return super().evaluate_sequences(obs, actions, states, starts, noise=noise, memory=memory)


def test_overrides_need_not_know_of_masks() -> None:
    env = make_vec_env("sb3_laplace/DirichletBandit-v0", 2, seed=0, env_kwargs={"trial_length": 5})
    model = LaplaceRecurrentPPO(UnmaskedPolicy, env, n_steps=8, batch_size=8, policy_kwargs={"lstm_hidden_size": 4})
    model.learn(16)
    assert posterior_trace(model, env, 4).n_trials == 4
    assert calibrate_prior_std(model, env, prior_stds=[0.1, 1.0], n_trials=4).prior_std in (0.1, 1.0)
