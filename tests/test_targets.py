"""Learning from targets of the actions."""

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_laplace import make_vec_env
from sb3_laplace.algorithm.losses import TargetTerm
from tests.helpers import ACTION_SPACES, RandomEnv
from tests.target_env import TargetEnv, losses_of, target_env
from tests.test_laplace_recurrent_ppo import collect, small_model

FOURIER = "sb3_laplace/FourierRegression-v0"


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
        outputs = policy.action_net(policy.mlp_extractor.forward_actor(evaluation.posterior.latents.flatten(1, 2)))
        if space == "box":
            components = th.distributions.Independent(th.distributions.Normal(outputs, policy.log_std.exp()), 1)
            per_component = components.log_prob(samples.columns["targets"])
        else:
            per_component = th.distributions.Categorical(logits=outputs).log_prob(samples.columns["targets"])
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
    term = TargetTerm(model)
    term.begin_rollout(env)
    env.reset()
    for _ in range(7):
        # Trials end after five: the target of a final step is that of the step, not of the reset
        actions = env.action_space.sample()[None].repeat(4, 0)
        _, _, _, infos = env.step(actions)
        errors = env.step_infos["squared_error"] if batched else [info["squared_error"] for info in infos]
        found = term.targets(infos)
        np.testing.assert_allclose(((found - actions)[:, 0] * 19 / 6) ** 2, errors, rtol=1e-4, atol=1e-6)


def test_buffer_holds_the_targets_of_its_steps() -> None:
    """A target is in the row of the action that it is for: at the query of the observation acted on."""
    env = make_vec_env(FOURIER, n_envs=3, seed=0, env_kwargs={"trial_length": 6})
    model = small_model(env, n_steps=12, target_coef=1.0, sequence_length=4, batch_size=12)
    collect(model)
    samples = next(iter(model.rollout_buffer.get(None)))
    observations, targets = samples.observations.view(9, 4, 6), samples.columns["targets"].view(9, 4) * 19 / 6
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
        (3, "discrete", r"info\['target'\] must be an action of Discrete\(3\), counted from 0, got 3 in it"),
        (0.5, "discrete", r"info\['target'\] must be an action of Discrete\(3\), counted from 0, got"),
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


@pytest.mark.parametrize("space", ACTION_SPACES)
def test_targets_are_stored_as_actions_are(space: str) -> None:
    model = small_model(target_env(action_space=ACTION_SPACES[space]), target_coef=1.0)
    collect(model)
    samples = next(iter(model.rollout_buffer.get(None)))
    targets, actions = samples.columns["targets"], samples.actions.squeeze(-1)
    assert targets.shape == actions.shape
    assert targets.dtype == actions.dtype
    assert targets.is_floating_point() == (space in ("box", "multi_binary"))


@pytest.mark.parametrize(("target", "inside"), [(0.999, True), (-0.999, True), (1.0, False), (-1.0, False)])
def test_targets_of_squashed_actions_lie_inside_the_box(target: float, inside: bool) -> None:
    """No finite action is squashed to a bound."""

    class Constant(RandomEnv):
        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
            return (*super().step(action)[:4], {"target": np.full(2, target)})

    env = DummyVecEnv([lambda: Constant(action_space=ACTION_SPACES["box"])] * 2)
    model = small_model(env, target_coef=1.0, use_sde=True, policy_kwargs={"squash_output": True})
    if inside:
        model.learn(24)
        assert math.isfinite(model.logger.name_to_value["train/target_loss"])
    else:
        with pytest.raises(ValueError, match=r"info\['target'\] must lie inside Box.* with squash_output=True"):
            model.learn(24)


def test_targets_missing_in_one_environment() -> None:
    env = DummyVecEnv([lambda: TargetEnv(), lambda: RandomEnv()])
    with pytest.raises(ValueError, match="every step: not environment 1 gave one"):
        small_model(env, target_coef=1.0).learn(24)
