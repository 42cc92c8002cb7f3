"""Learning from targets and decoding rewards: the terms, what they read, and the invariants with all of them on."""

import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_laplace import LaplaceRecurrentPPO, make_vec_env
from sb3_laplace.algorithm.step_data import AuxiliaryReader
from sb3_laplace.policies.reward_decoder import RewardDecoder
from tests.helpers import ACTION_SPACES, RandomEnv
from tests.test_laplace_recurrent_ppo import POSTERIORS, collect, largest_log_ratio, small_model

ALL_TERMS: dict[str, Any] = {"target_coef": 1.0, "reward_coef": 0.5, "decode_window": 2}
FOURIER = "sb3_laplace/FourierRegression-v0"


class TargetEnv(RandomEnv):
    """Random, with the action that would have been right in its infos; rewards of 0 or 1 if asked for."""

    def __init__(self, binary: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.binary = binary
        self.action_space.seed(0)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        obs, reward, terminated, truncated, _ = super().step(action)
        reward = float(reward > 0) if self.binary else reward
        return obs, reward, terminated, truncated, {"target": self.action_space.sample()}


def target_env(n_envs: int = 3, **kwargs: Any) -> DummyVecEnv:
    env = DummyVecEnv([lambda: Monitor(TargetEnv(**kwargs)) for _ in range(n_envs)])
    env.seed(0)
    return env


def losses_of(model: LaplaceRecurrentPPO) -> dict[str, float]:
    """Terms of the loss of the whole rollout, without an update."""
    samples = next(iter(model.rollout_buffer.get(None)))
    return model._loss(samples, model._loss_settings())[1]


# -- targets --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_samples", [0, 1, 4])
@pytest.mark.parametrize("space", ["box", "discrete"])
def test_target_loss_is_the_likelihood_of_the_mixture(space: str, n_samples: int) -> None:
    model = small_model(
        target_env(action_space=ACTION_SPACES[space]),
        target_coef=1.0,
        policy_kwargs={"n_posterior_samples": n_samples, "latent_dim": 3, "posterior_kwargs": {"prior_std": 1.0}},
    )
    collect(model)
    samples = next(iter(model.rollout_buffer.get(None)))
    policy = model.policy
    with th.no_grad():
        evaluation = policy.evaluate_sequences(
            samples.observations, samples.actions, samples.lstm_states, samples.episode_starts, samples.noise
        )
        # Shape (K, B, .)
        outputs = policy.action_net(policy.mlp_extractor.forward_actor(evaluation.latents.flatten(1, 2)))
        if space == "box":
            components = th.distributions.Independent(th.distributions.Normal(outputs, policy.log_std.exp()), 1)
            per_component = components.log_prob(samples.targets)
        else:
            per_component = th.distributions.Categorical(logits=outputs).log_prob(samples.targets)
        expected = -(per_component.logsumexp(0) - math.log(len(outputs))).mean()
    assert losses_of(model)["target_loss"] == pytest.approx(float(expected), rel=1e-5)


def test_policy_coef_0_learns_from_targets_alone() -> None:
    model = small_model(target_env(action_space=ACTION_SPACES["box"]), target_coef=1.0, policy_coef=0.0, n_epochs=1)
    before = {name: weight.clone() for name, weight in model.policy.named_parameters()}
    model.learn(36)
    changed = {name for name, weight in model.policy.named_parameters() if not th.equal(weight, before[name])}
    assert changed == {name for name in before if not any(part in name for part in ("critic", "value", "vf"))}
    # PPO's terms are still logged
    assert {"train/value_loss", "train/target_loss", "train/approx_kl"} <= set(model.logger.name_to_value)


def test_terms_add_up() -> None:
    model = small_model(
        target_env(), kl_coef=0.3, ent_coef=0.1, policy_coef=0.7, target_coef=0.2, reward_coef=0.4, seed=1
    )
    collect(model)
    terms = losses_of(model)
    ppo = terms["policy_gradient_loss"] + 0.1 * terms["entropy_loss"] + 0.5 * terms["value_loss"]
    total = 0.7 * ppo + 0.3 * terms["kl_loss"] + 0.2 * terms["target_loss"] + 0.4 * terms["reward_loss"]
    assert terms["loss"] == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("normalized", [True, False])
def test_targets_are_read_in_the_units_of_actions(batched: bool, normalized: bool) -> None:
    if batched:
        env: Any = make_vec_env(FOURIER, n_envs=4, seed=0, env_kwargs={"trial_length": 5})
    else:
        env = DummyVecEnv([lambda: gym.make(FOURIER, trial_length=5)] * 4)
    if normalized:
        env = VecNormalize(env)
    model = small_model(env, n_steps=12, target_coef=1.0)
    reader = AuxiliaryReader(env, model.policy, with_targets=True, with_rewards=False)
    env.reset()
    for _ in range(7):
        # Trials end after five: the target of a final step is that of the step, not of the reset
        actions = env.action_space.sample()[None].repeat(4, 0)
        _, _, _, infos = env.step(actions)
        errors = env.step_infos["squared_error"] if batched else [info["squared_error"] for info in infos]
        found = reader.targets(infos)
        np.testing.assert_allclose(((found - actions)[:, 0] * 19 / 6) ** 2, errors, rtol=1e-4, atol=1e-6)


def test_buffer_holds_the_targets_of_its_steps() -> None:
    """A target is in the row of the action that it is for: at the query of the observation acted on."""
    env = make_vec_env(FOURIER, n_envs=3, seed=0, env_kwargs={"trial_length": 6})
    model = small_model(env, n_steps=12, target_coef=1.0, sequence_length=4, batch_size=12)
    collect(model)
    samples = next(iter(model.rollout_buffer.get(None)))
    assert samples.targets is not None
    observations, targets = samples.observations.view(9, 4, 6), samples.targets.view(9, 4) * 19 / 6
    # The next observation shows the pair (query, y), unless a trial has ended
    going_on = samples.episode_starts.view(9, 4)[:, 1:] == 0
    th.testing.assert_close(observations[:, 1:, 1][going_on], targets[:, :-1][going_on], rtol=1e-5, atol=1e-6)
    assert going_on.sum() == 9 * 3 - 3


def test_supervised_learning_learns() -> None:
    """The target is a function of the observation: a regression and a classification."""

    class Labelled(gym.Env):
        observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

        def __init__(self, action_space: spaces.Space) -> None:
            self.action_space = action_space

        def _show(self) -> np.ndarray:
            self.obs = self.np_random.uniform(-1, 1, 2).astype(np.float32)
            return self.obs

        def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
            super().reset(seed=seed)
            self.t = 0
            return self._show(), {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
            self.t += 1
            discrete = isinstance(self.action_space, spaces.Discrete)
            target = int(self.obs[0] > self.obs[1]) if discrete else 0.5 * self.obs[0]
            return self._show(), 0.0, False, self.t == 10, {"target": target}

    for action_space, most in ((spaces.Discrete(2), 0.25), (spaces.Box(-1, 1, (1,)), -0.4)):
        env = DummyVecEnv([lambda space=action_space: Labelled(space)] * 8)
        model = small_model(
            env,
            n_steps=20,
            batch_size=80,
            target_coef=1.0,
            policy_coef=0.0,
            learning_rate=1e-2,
            policy_kwargs={"lstm_hidden_size": 16},
        )
        model.learn(160 * 40)
        assert model.logger.name_to_value["train/target_loss"] < most


@pytest.mark.parametrize(
    ("target", "space", "message"),
    [
        (None, "box", "target_coef needs environments whose info holds 'target' at every step: no environment gave"),
        (np.zeros(3), "box", r"info\['target'\] must have the shape \(2,\) of an action of Box.*got \(3,\)"),
        ("left", "discrete", r"info\['target'\] must have the shape \(\)"),
        (np.array([np.nan, 0.0]), "box", r"info\['target'\] must be finite, got nan"),
        (3, "discrete", r"info\['target'\] must be an action of Discrete\(3\), got 3 in it"),
        (0.5, "discrete", r"info\['target'\] must be an action of Discrete\(3\), got"),
        (np.array([0, 2]), "multi_discrete", r"info\['target'\] must be an action of MultiDiscrete"),
        (np.array([0, 1, 2]), "multi_binary", r"info\['target'\] must be an action of MultiBinary"),
    ],
)
def test_targets_that_cannot_be_used(target: Any, space: str, message: str) -> None:
    class Broken(RandomEnv):
        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
            return (*super().step(action)[:4], {} if target is None else {"target": target})

    env = DummyVecEnv([lambda: Broken(action_space=ACTION_SPACES[space])] * 2)
    with pytest.raises(ValueError, match=message):
        small_model(env, target_coef=1.0).learn(24)


def test_targets_missing_in_one_environment() -> None:
    env = DummyVecEnv([lambda: TargetEnv(), lambda: RandomEnv()])
    with pytest.raises(ValueError, match="every step: not environment 1 gave one"):
        small_model(env, target_coef=1.0).learn(24)


# -- rewards --------------------------------------------------------------------------------------------------


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
    assert isinstance(samples.next_observations, th.Tensor)
    # It shows the action and the reward of the step; of the next trial's first observation, neither
    th.testing.assert_close(samples.next_observations[:, 5], samples.decoder_rewards)
    assert th.equal(samples.next_observations[:, :5].argmax(1), samples.actions.long().flatten())
    model.train()
    assert "train/reward_loss" in model.logger.name_to_value


def test_rewards_are_decoded_as_given() -> None:
    """Not with the value that PPO adds where a time limit cuts an episode."""
    env = make_vec_env("sb3_laplace/DirichletBandit-v0", n_envs=3, seed=0, env_kwargs={"trial_length": 4})
    model = small_model(env, n_steps=8, batch_size=8, reward_coef=1.0)
    collect(model)
    samples = next(iter(model.rollout_buffer.get(None)))
    assert set(samples.decoder_rewards.unique().tolist()) <= {0.0, 1.0}
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
    model = small_model(
        env, n_steps=50, batch_size=200, policy_coef=0.0, reward_coef=1.0, learning_rate=3e-3, n_epochs=4
    )
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


# -- invariants with every term on ----------------------------------------------------------------------------


@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize("n_samples", [0, 1, 4])
def test_ratio_is_one_with_every_term(posterior: str, n_samples: int) -> None:
    kwargs = {**POSTERIORS[posterior], "n_posterior_samples": n_samples}
    model = small_model(target_env(), policy_kwargs=kwargs, n_steps=13, sequence_length=5, batch_size=10, **ALL_TERMS)
    for _ in range(2):
        collect(model)
        assert largest_log_ratio(model) < 1e-5
    model.learn(39)


@pytest.mark.parametrize("space", ACTION_SPACES)
@pytest.mark.parametrize("next_obs", [True, False])
def test_saved_is_the_same_with_every_term(space: str, next_obs: bool, tmp_path: Path) -> None:
    env = target_env(action_space=ACTION_SPACES[space])
    kwargs = {"reward_decoder_kwargs": {"next_obs": next_obs, "net_arch": [4]}}
    model = small_model(env, policy_kwargs=kwargs, kl_coef=0.01, **ALL_TERMS)
    model.learn(72)
    model.save(tmp_path / "model")
    loaded = LaplaceRecurrentPPO.load(tmp_path / "model", env=env, device="cpu")
    assert (loaded.target_coef, loaded.reward_coef, loaded.decode_window) == (1.0, 0.5, 2)
    obs = env.reset()
    (action, state), (other, other_state) = (one.predict(obs, deterministic=True) for one in (model, loaded))
    np.testing.assert_array_equal(action, other)
    arguments = (action, obs if next_obs else None)
    np.testing.assert_array_equal(
        model.policy.predict_reward(state, *arguments), loaded.policy.predict_reward(other_state, *arguments)
    )
    loaded.learn(36, reset_num_timesteps=False)
    assert loaded.num_timesteps == 108


def test_another_posterior_keeps_the_terms() -> None:
    model = small_model(target_env(), policy_coef=0.5, **ALL_TERMS, policy_kwargs={"posterior": "point"})
    model.learn(36)
    converted = LaplaceRecurrentPPO.from_recurrent_ppo(model)
    names = ("policy_coef", "target_coef", "reward_coef", "decode_window")
    assert [getattr(converted, name) for name in names] == [0.5, 1.0, 0.5, 2]
    obs = model.env.reset()
    state = model.predict(obs)[1]
    np.testing.assert_array_equal(
        converted.policy.predict_reward(converted.predict(obs)[1]), model.policy.predict_reward(state)
    )
    converted.learn(36)


def test_all_terms_may_end_at_zero() -> None:
    """At the end of a schedule nothing is left to descend."""
    model = small_model(target_env(), policy_coef=0.0, kl_coef=0.0, target_coef=lambda progress: progress)
    model.learn(72)
    assert model.num_timesteps == 72


def test_rewards_under_vec_normalize_are_the_environments() -> None:
    env = VecNormalize(make_vec_env("sb3_laplace/DirichletBandit-v0", n_envs=3, seed=0))
    model = small_model(env, reward_coef=1.0)
    collect(model)
    samples = next(iter(model.rollout_buffer.get(None)))
    assert set(samples.decoder_rewards.unique().tolist()) <= {0.0, 1.0}
    assert not model.policy.reward_decoder.gaussian


def test_terms_switched_on_later(tmp_path: Path) -> None:
    """Between calls of learn they may change; what a rollout does not hold is not learned from."""
    env = target_env()
    model = small_model(env)
    model.learn(36)
    model.save(tmp_path / "model")
    model.target_coef = 1.0
    with pytest.raises(ValueError, match=r"target_coef = 1\.0 was set after the rollout had begun"):
        model.train()
    model.learn(36)
    assert "train/target_loss" in model.logger.name_to_value
    model.reward_coef = 1.0
    with pytest.raises(ValueError, match="reward_coef needs a reward decoder, which this policy was built without"):
        model.learn(36)
    with pytest.warns(UserWarning, match="The saved agent has no reward decoder"):
        loaded = LaplaceRecurrentPPO.load(tmp_path / "model", env=env, reward_coef=1.0, device="cpu")
    for name, weight in LaplaceRecurrentPPO.load(tmp_path / "model", device="cpu").policy.state_dict().items():
        assert th.equal(loaded.policy.state_dict()[name], weight)
    loaded.learn(36)
    assert "train/reward_loss" in loaded.logger.name_to_value
    loaded.reward_coef = 0.0
    loaded.learn(36)
    assert next(iter(loaded.rollout_buffer.get(None))).decoder_rewards is None


def test_supervised_learning_does_not_stop_at_target_kl() -> None:
    model = small_model(target_env(), policy_coef=0.0, target_coef=1.0, target_kl=1e-12, n_epochs=3)
    model.learn(36)
    assert model._n_updates == 3


@pytest.mark.parametrize("shape", [(2, 3), (4,)])
def test_actions_of_any_shape(shape: tuple[int, ...]) -> None:
    model = small_model(target_env(action_space=spaces.Box(-1.0, 1.0, shape, np.float32)), **ALL_TERMS)
    model.learn(36)
    collect(model)
    assert largest_log_ratio(model) < 1e-5
    actions, state = model.predict(model.env.reset())
    assert model.policy.predict_reward(state, actions).shape == (3,)


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.array([0, 1, 3]), r"actions must lie in Discrete\(3\), got 3"),
        (np.array([0, 1, -1]), r"actions must lie in Discrete\(3\), got -1"),
        (np.array([0.5, 1.0, 0.0]), r"actions must lie in Discrete\(3\), got 0.5"),
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


def test_schedules() -> None:
    seen: dict[str, list[float]] = {}
    names = ("ent_coef", "kl_coef", "policy_coef", "target_coef", "reward_coef")

    def schedule(name: str) -> Any:
        def value(progress: float) -> float:
            seen.setdefault(name, []).append(progress)
            return 0.1 * progress

        return value

    model = small_model(target_env(), **{name: schedule(name) for name in names})
    model.learn(144)
    assert set(seen) == set(names)
    for progress in seen.values():
        assert max(progress) == 1.0
        assert min(progress) == pytest.approx(0.0)


def decoder(**kwargs: Any) -> dict[str, Any]:
    return {"policy_kwargs": {"reward_decoder_kwargs": kwargs}}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"target_coef": -1}, "target_coef must be a finite number >= 0, got -1"),
        ({"policy_coef": float("nan")}, "policy_coef must be a finite number >= 0, got nan"),
        ({"reward_coef": "0.1"}, "reward_coef must be a finite number >= 0, got '0.1'"),
        ({"reward_coef": lambda _: -0.5}, "reward_coef must be a finite number >= 0, got -0.5"),
        ({"decode_window": -1}, "decode_window must be an integer >= 0, got -1"),
        ({"decode_window": "all"}, "decode_window must be an integer >= 0 or 'trial', got 'all'"),
        ({"decode_window": 1.5}, "decode_window must be an integer >= 0 or 'trial', got 1.5"),
        ({"decode_window": math.inf}, "decode_window must be an integer >= 0 or 'trial', got inf"),
        ({"target_coef": None}, "target_coef must be a finite number >= 0, got None"),
        ({"policy_coef": None}, "policy_coef must be a finite number >= 0, got None"),
        ({"policy_coef": 0, "kl_coef": 0}, "No term of the loss is on: policy_coef, target_coef, reward_coef and"),
        (decoder(next_obs="yes"), "next_obs of the reward decoder must be True or False, got 'yes'"),
        (
            {"policy_kwargs": {"reward_decoder_kwargs": {"net_arch": []}}},
            "net_arch of the reward decoder must list one",
        ),
        (
            {"policy_kwargs": {"reward_decoder_kwargs": {"net_arch": [0]}}},
            "net_arch of the reward decoder must be an integer >= 1",
        ),
        (
            {"policy_kwargs": {"reward_decoder_kwargs": {"likelihood": "poisson"}}},
            "likelihood must be .* got 'poisson'",
        ),
    ],
)
def test_bad_arguments(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_model(target_env(), **kwargs)


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


def test_total_loss_refuses_nan() -> None:
    model = small_model(target_env(), target_coef=1.0)
    collect(model)
    samples = next(iter(model.rollout_buffer.get(None)))
    broken = samples._replace(advantages=samples.advantages * float("nan"))
    with pytest.raises(ValueError, match="The loss is not finite"):
        model._loss(broken, model._loss_settings())
