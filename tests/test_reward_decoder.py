"""Decoding rewards from the latent: the loss, what it reads, and what is predicted."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_laplace import make_vec_env
from sb3_laplace.policies.reward_decoder import RewardDecoder
from tests.helpers import ACTION_SPACES
from tests.target_env import target_env
from tests.test_laplace_recurrent_ppo import collect, small_model


@pytest.mark.parametrize("gaussian", [True, False])
@pytest.mark.parametrize("window", [0, 1, 3, 100, "trial"])
@pytest.mark.parametrize("masked", [True, False])
def test_reward_loss_is_the_mean_over_pairs(gaussian: bool, window: int | str, masked: bool) -> None:
    """Against a loop over samples, sequences, steps and decoded steps."""
    n_samples, n_seq, length = 2, 3, 6
    decoder = RewardDecoder(4, spaces.Discrete(3), 5, likelihood="gaussian" if gaussian else "bernoulli")
    generator = th.Generator().manual_seed(0)
    latents = th.randn(n_samples, n_seq, length, 4, generator=generator)
    actions = th.randint(3, (n_seq * length,), generator=generator)
    steps = decoder.encode(actions, None).view(n_seq, length, 3)
    rewards = th.randint(2, (n_seq, length), generator=generator).float()
    starts = (th.rand(n_seq, length, generator=generator) < 0.3).float()
    mask = th.arange(length) < th.tensor([[6], [5], [5]]) if masked else None
    reach = length if window == "trial" else int(window)
    terms = []
    for k in range(n_samples):
        for s in range(n_seq):
            for t in range(length):
                for other in range(max(0, t - reach), min(length, t + reach + 1)):
                    between = starts[s, min(t, other) + 1 : max(t, other) + 1]
                    if between.any() or (mask is not None and not (mask[s, t] and mask[s, other])):
                        continue
                    expected = decoder(latents[k, s, t], steps[s, other])
                    if gaussian:
                        terms.append(-th.distributions.Normal(expected, 1.0).log_prob(rewards[s, other]))
                    else:
                        terms.append(-th.distributions.Bernoulli(expected).log_prob(rewards[s, other]))
    found = decoder.loss(latents, steps, rewards, starts, mask, window)
    th.testing.assert_close(found, th.stack(terms).mean(), rtol=1e-5, atol=1e-6)


def test_likelihood_follows_the_rewards() -> None:
    model = small_model(target_env(binary=True), reward_coef=1.0)
    model.learn(36)
    assert not model.policy.reward_decoder.gaussian
    state = model.predict(model.env.reset())[1]
    assert ((model.policy.predict_reward(state) > 0) & (model.policy.predict_reward(state) < 1)).all()
    with pytest.warns(UserWarning, match="took rewards for Bernoulli and goes on with a Gaussian"):
        model.policy.reward_decoder.observe(np.array([0.0, -2.0]))
    assert model.policy.reward_decoder.gaussian

    model = small_model(target_env(binary=False), reward_coef=1.0)
    model.learn(36)
    assert model.policy.reward_decoder.gaussian
    kwargs = {"reward_decoder_kwargs": {"likelihood": "bernoulli"}}
    with pytest.raises(ValueError, match="likelihood='bernoulli' of the reward decoder needs rewards of 0 or 1, got"):
        small_model(target_env(binary=False), reward_coef=1.0, policy_kwargs=kwargs).learn(36)


@pytest.mark.parametrize("batched", [True, False])
def test_next_observation_at_the_end_is_the_terminal_one(batched: bool) -> None:
    env: Any = make_vec_env(
        "sb3_laplace/DirichletBandit-v0",
        n_envs=3,
        seed=0,
        env_kwargs={"trial_length": 4},
        vec_env_cls=None if batched else DummyVecEnv,
    )
    kwargs = {"reward_decoder_kwargs": {"next_obs": True}}
    model = small_model(env, n_steps=8, batch_size=8, reward_coef=1.0, policy_kwargs=kwargs)
    collect(model)
    samples = next(iter(model.rollout_buffer.get(None)))
    assert isinstance(samples.columns["next_observations"], th.Tensor)
    # It shows the action and the reward of the step; of the next trial's first observation, neither
    th.testing.assert_close(samples.columns["next_observations"][:, 5], samples.columns["decoder_rewards"])
    assert th.equal(samples.columns["next_observations"][:, :5].argmax(1), samples.actions.long().flatten())
    model.train()
    assert "train/reward_loss" in model.logger.name_to_value


def test_rewards_are_decoded_as_given() -> None:
    """Not with the value that PPO adds where a time limit cuts an episode."""
    env = make_vec_env("sb3_laplace/DirichletBandit-v0", n_envs=3, seed=0, env_kwargs={"trial_length": 4})
    model = small_model(env, n_steps=8, batch_size=8, reward_coef=1.0)
    collect(model)
    samples = next(iter(model.rollout_buffer.get(None)))
    assert set(samples.columns["decoder_rewards"].unique().tolist()) <= {0.0, 1.0}
    assert not np.isin(model.rollout_buffer.rewards, (0.0, 1.0)).all()


def test_decoder_learns_success_probabilities() -> None:
    """One bandit task for ever: the decoder finds the probability of every arm."""
    probabilities = np.array([0.05, 0.25, 0.45, 0.65, 0.95])

    class OneBandit(gym.Env):
        observation_space = spaces.Box(0.0, 1.0, (1,), np.float32)
        action_space = spaces.Discrete(5)

        def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
            super().reset(seed=seed)
            self.t = 0
            return np.zeros(1, np.float32), {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
            self.t += 1
            reward = float(self.np_random.random() < probabilities[action])
            return np.zeros(1, np.float32), reward, False, self.t == 10, {}

    env = DummyVecEnv([OneBandit] * 16)
    env.seed(0)
    arguments: dict[str, Any] = {"n_steps": 50, "batch_size": 200, "learning_rate": 3e-3, "n_epochs": 4}
    model = small_model(env, policy_coef=0.0, reward_coef=1.0, policy_kwargs={"latent_dim": None}, **arguments)
    model.learn(16_000)
    state = model.predict(env.reset())[1]
    decoded = model.policy.predict_reward(state)
    assert decoded.shape == (16, 5)
    np.testing.assert_allclose(decoded, np.tile(probabilities, (16, 1)), atol=0.06)
    for arm in range(5):
        one = model.policy.predict_reward(state, np.full(16, arm))
        np.testing.assert_allclose(one, decoded[:, arm], rtol=1e-5)
    th.manual_seed(0)
    assert np.abs(model.policy.predict_reward(state, n_posterior_samples=30) - decoded).max() < 0.05


def test_predict_reward_with_continuous_actions() -> None:
    model = small_model(target_env(action_space=ACTION_SPACES["box"]), reward_coef=1.0)
    state = model.predict(model.env.reset())[1]
    inside = model.policy.predict_reward(state, np.ones((3, 2), np.float32))
    outside = model.policy.predict_reward(state, np.full((3, 2), 7.0, np.float32))
    # The environment clips actions to the box
    np.testing.assert_array_equal(inside, outside)
    with pytest.raises(ValueError, match=r"actions must be given: Box.* has no list of all actions"):
        model.policy.predict_reward(state)
    with pytest.raises(ValueError, match=r"actions must be finite numbers of shape \(3, 2\), got float64 of \(3,\)"):
        model.policy.predict_reward(state, np.zeros(3))


def test_rewards_under_vec_normalize_are_the_environments() -> None:
    env = VecNormalize(make_vec_env("sb3_laplace/DirichletBandit-v0", n_envs=3, seed=0))
    model = small_model(env, reward_coef=1.0)
    collect(model)
    samples = next(iter(model.rollout_buffer.get(None)))
    assert set(samples.columns["decoder_rewards"].unique().tolist()) <= {0.0, 1.0}
    assert not model.policy.reward_decoder.gaussian


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.array([0, 1, 3]), r"actions must lie in Discrete\(3\), counted from 0, got 3"),
        (np.array([0, 1, -1]), r"actions must lie in Discrete\(3\), counted from 0, got -1"),
        (np.array([0.5, 1.0, 0.0]), r"actions must lie in Discrete\(3\), counted from 0, got 0.5"),
        (np.array([0, 1]), r"actions must be finite numbers of shape \(3,\), got int64 of \(2,\)"),
        ("left", r"actions must be finite numbers of shape \(3,\)"),
    ],
)
def test_bad_actions_of_predict_reward(actions: Any, message: str) -> None:
    model = small_model(target_env(), reward_coef=1.0)
    state = model.predict(model.env.reset())[1]
    with pytest.raises(ValueError, match=message):
        model.policy.predict_reward(state, actions)


def test_bad_next_observations_of_predict_reward() -> None:
    model = small_model(policy_kwargs={"reward_decoder_kwargs": {"next_obs": True}})
    obs = model.env.reset()
    actions, state = model.predict(obs)
    with pytest.raises(ValueError, match="next_observations must be 3, as the states are, got 2"):
        model.policy.predict_reward(state, actions, obs[:2])
    with pytest.raises(ValueError, match="observation holds NaN"):
        model.policy.predict_reward(state, actions, obs * np.nan)


def test_unknown_keyword_of_the_decoder() -> None:
    with pytest.raises(TypeError, match=r"reward_decoder_kwargs must be a dict of any of .*sizes"):
        small_model(policy_kwargs={"reward_decoder_kwargs": {"sizes": [3]}})


def test_no_decoder() -> None:
    model = small_model()
    state = model.predict(model.env.reset())[1]
    with pytest.raises(ValueError, match="The policy has no reward decoder: build the model with reward_coef > 0"):
        model.policy.predict_reward(state)


def test_next_observation_must_be_given_where_it_is_read() -> None:
    model = small_model(policy_kwargs={"reward_decoder_kwargs": {"next_obs": True}})
    obs = model.env.reset()
    actions, state = model.predict(obs)
    with pytest.raises(ValueError, match="actions must be given where the reward decoder reads what they lead to"):
        model.policy.predict_reward(state)
    with pytest.raises(ValueError, match="next_observations must be given for this reward decoder"):
        model.policy.predict_reward(state, actions)
    assert model.policy.predict_reward(state, actions, obs).shape == (3,)
    plain = small_model(policy_kwargs={"reward_decoder_kwargs": {}})
    with pytest.raises(ValueError, match="next_observations must be None for this reward decoder"):
        plain.policy.predict_reward(state, actions, obs)
