"""What scripts written for SB3 and RecurrentPPO do: it works here too, or says in one line what to do."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_laplace import LaplaceMultiInputLstmPolicy, LaplaceRecurrentPPO, make_vec_env, posterior_trace
from tests.helpers import ACTION_SPACES, RandomEnv
from tests.test_laplace_recurrent_ppo import random_vec_env, small_model


class DuringRollout(BaseCallback):
    """Calls a function of the callback at one step of the first rollout."""

    def __init__(self, function: Any, at: int) -> None:
        super().__init__()
        self.function = function
        self.at = at

    def _on_step(self) -> bool:
        if self.n_calls == self.at:
            self.function(self)
        return True


# -- saving and loading ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "policy_kwargs",
    [
        {"lstm_hidden_size": 8},
        {"lstm_hidden_size": 8, "latent_dim": 3, "posterior_kwargs": {"covariance": "full"}},
        {"lstm_hidden_size": 8, "posterior": "variational"},
    ],
)
def test_load_with_the_keywords_it_was_built_with(policy_kwargs: dict[str, Any], tmp_path: Path) -> None:
    env = random_vec_env()
    model = LaplaceRecurrentPPO("LaplaceLstmPolicy", env, n_steps=8, reward_coef=1.0, policy_kwargs=dict(policy_kwargs))
    model.save(tmp_path / "model")
    loaded = LaplaceRecurrentPPO.load(tmp_path / "model", env=env, policy_kwargs=dict(policy_kwargs))
    for name, weight in model.policy.state_dict().items():
        assert th.equal(loaded.policy.state_dict()[name], weight)


def test_a_decoder_that_is_no_longer_trained_is_saved(tmp_path: Path) -> None:
    model = small_model(reward_coef=1.0)
    model.reward_coef = 0.0
    model.save(tmp_path / "model")
    assert LaplaceRecurrentPPO.load(tmp_path / "model", device="cpu").policy.reward_decoder is not None


def test_each_algorithm_names_the_other(tmp_path: Path) -> None:
    small_model().save(tmp_path / "ours")
    theirs = RecurrentPPO("MlpLstmPolicy", "CartPole-v1", n_steps=8, policy_kwargs={"lstm_hidden_size": 4})
    theirs.save(tmp_path / "theirs")
    with pytest.raises(ValueError, match=r"LaplaceRecurrentPPO\.from_recurrent_ppo converts a model of RecurrentPPO"):
        LaplaceRecurrentPPO.load(tmp_path / "theirs")
    mistaken = RecurrentPPO.load(tmp_path / "ours", env=random_vec_env())
    with pytest.raises(ValueError, match="RecurrentPPO cannot train an agent of LaplaceRecurrentPPO: use Laplace"):
        mistaken.learn(100)


# -- in a callback --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action_space", [spaces.Discrete(3), spaces.Box(-1.0, 1.0, (2,), np.float32)])
def test_what_callbacks_find(action_space: spaces.Space) -> None:
    """RecurrentPPO's locals and buffer, under their names and with their shapes."""
    found: dict[str, Any] = {}

    def look(callback: BaseCallback) -> None:
        found.update(callback.locals)

    env = random_vec_env(action_space=action_space)
    model = small_model(env).learn(36, callback=DuringRollout(look, 5))
    theirs = RecurrentPPO("MlpLstmPolicy", env, n_steps=12, policy_kwargs={"lstm_hidden_size": 8}, seed=0)
    expected: dict[str, Any] = {}
    theirs.learn(36, callback=DuringRollout(lambda callback: expected.update(callback.locals), 5))
    for name in ("obs_tensor", "actions", "clipped_actions", "values", "log_probs", "new_obs", "rewards", "dones"):
        assert np.shape(found[name]) == np.shape(expected[name]), name
    for mine, other in zip(found["lstm_states"], expected["lstm_states"], strict=True):
        assert [part.shape for part in mine.core] == [part.shape for part in other]
    buffer, their_buffer = model.rollout_buffer, theirs.rollout_buffer
    assert buffer.observations.shape == (12, 3, 4)
    shape = (12, 3, *action_space.shape) if action_space.shape else (12, 3)
    assert buffer.actions.shape == shape
    assert their_buffer.actions.size == buffer.actions.size
    # The last step's action is the one that the environment got
    assert buffer.rewards.shape == their_buffer.rewards.shape == (12, 3)


@pytest.mark.parametrize("action_space", ACTION_SPACES.values(), ids=ACTION_SPACES)
def test_buffer_before_the_first_rollout(action_space: spaces.Space) -> None:
    """Zeros, as RecurrentPPO's, in the shape that the first rollout has."""
    model = small_model(random_vec_env(action_space=action_space))
    buffer = model.rollout_buffer
    before = buffer.actions, buffer.observations
    model.learn(36)
    for zeros, filled in zip(before, (buffer.actions, buffer.observations), strict=True):
        assert zeros.shape == filled.shape
        assert not zeros.any()
    assert before[0].dtype == action_space.dtype
    kinds = spaces.Dict({"a": spaces.Box(-1, 1, (2,), np.float64), "b": spaces.Discrete(3)})
    of_dict = small_model(random_vec_env(observation_space=kinds), "LaplaceMultiInputLstmPolicy")
    found = of_dict.rollout_buffer.observations
    assert {key: (part.shape, part.dtype) for key, part in found.items()} == {
        "a": ((12, 3, 2), np.float32),
        "b": ((12, 3), np.int64),
    }


def test_buffer_holds_what_happened() -> None:
    steps: list[tuple[np.ndarray, ...]] = []

    class Recorder(BaseCallback):
        def _on_step(self) -> bool:
            steps.append((self.locals["obs_tensor"].numpy().copy(), self.locals["actions"].copy()))
            return True

    model = small_model()
    model.learn(36, callback=Recorder())
    for t, (obs, actions) in enumerate(steps):
        np.testing.assert_array_equal(model.rollout_buffer.observations[t], obs)
        np.testing.assert_array_equal(model.rollout_buffer.actions[t], actions)
    kinds = spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "b": spaces.Discrete(3)})
    of_dict = small_model(random_vec_env(observation_space=kinds), "LaplaceMultiInputLstmPolicy")
    of_dict.learn(36)
    assert of_dict.rollout_buffer.observations["a"].shape == (12, 3, 2)


def test_gradients_through_what_a_rollout_leaves() -> None:
    gradients = []

    def differentiate(callback: BaseCallback) -> None:
        policy, values = callback.model.policy, callback.locals
        state = values["lstm_states"].pi
        hidden = policy.lstm_actor.hidden(policy.lstm_actor.step(values["obs_tensor"], state.core))
        loss = hidden.square().sum() + (values["step"].posterior.posterior.mean * hidden).sum()
        gradients.append(th.autograd.grad(loss, list(policy.lstm_actor.parameters())))

    model = small_model().learn(36, callback=DuringRollout(differentiate, 5))
    assert gradients
    state = model._last_lstm_states.pi
    loss = model.policy.lstm_actor.step(th.zeros(3, 4), state.core)[0].sum()
    assert th.autograd.grad(loss, model.policy.lstm_actor.weight_hh_l0)[0].abs().sum() > 0


@pytest.mark.parametrize("name", ["kl_coef", "target_coef"])
@pytest.mark.parametrize("at", [1, 6, 12])
def test_terms_switched_on_inside_a_rollout(name: str, at: int) -> None:
    """What a rollout does not hold from its first step on is not learned from."""
    model = small_model(kl_coef=0.0)
    callback = DuringRollout(lambda callback: setattr(callback.model, name, 0.5), at)
    with pytest.raises(ValueError, match=rf"{name} = 0\.5 was set after the rollout had begun"):
        model.learn(36, callback=callback)


def test_kl_switched_on_between_rollouts_is_right() -> None:
    class Switch(BaseCallback):
        def _on_rollout_start(self) -> None:
            self.model.kl_coef = 0.1

        def _on_step(self) -> bool:
            return True

    always = small_model(kl_coef=0.1).learn(36)
    later = small_model(kl_coef=0.0).learn(36, callback=Switch())
    assert later.logger.name_to_value["train/kl_loss"] == always.logger.name_to_value["train/kl_loss"]


def test_number_of_samples_changed_inside_a_rollout() -> None:
    model = small_model(policy_kwargs={"n_posterior_samples": 1})
    change = DuringRollout(lambda callback: setattr(callback.model.policy, "n_posterior_samples", 3), 4)
    with pytest.raises(ValueError, match="n_posterior_samples was changed from 1 to 3 inside a rollout"):
        model.learn(36, callback=change)
    model.learn(36)


def test_samples_under_gsde() -> None:
    env = random_vec_env(action_space=spaces.Box(-1.0, 1.0, (2,), np.float32))
    model = small_model(env, use_sde=True)
    model.policy.n_posterior_samples = 3
    with pytest.raises(ValueError, match=r"use_sde=True \(gSDE\) takes n_posterior_samples <= 1, got 3"):
        model.learn(36)


def test_the_training_environment_played_by_a_callback() -> None:
    def play(callback: BaseCallback) -> None:
        posterior_trace(callback.model, callback.training_env, n_trials=1)

    with pytest.raises(ValueError, match="The training environment was reset or played inside learn"):
        small_model().learn(36, callback=DuringRollout(play, 5))

    class AtTheEnd(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            play(self)

    with pytest.raises(ValueError, match="The training environment was reset or played inside learn"):
        small_model().learn(72, callback=AtTheEnd())


def test_a_coefficient_set_to_none() -> None:
    model = small_model()
    model.kl_coef = None
    with pytest.raises(ValueError, match="kl_coef must be a finite number >= 0, got None"):
        model.learn(36)


# -- environments ---------------------------------------------------------------------------------------------


def test_a_vector_env_is_wrapped() -> None:
    env = SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 2, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)
    model = LaplaceRecurrentPPO("LaplaceLstmPolicy", env, n_steps=8, policy_kwargs={"lstm_hidden_size": 4})
    assert model.n_envs == 2
    model.learn(32)


@pytest.mark.parametrize(
    ("space", "policy", "message"),
    [
        (
            spaces.Dict({"a": spaces.Box(-1, 1, (2,))}),
            "LaplaceLstmPolicy",
            "Dict observations are for LaplaceMultiInputLstmPolicy",
        ),
        (
            spaces.Dict({"a": spaces.Box(-1, 1, (2,))}),
            "LaplaceCnnLstmPolicy",
            "Dict observations are for LaplaceMultiInputLstmPolicy",
        ),
        (
            spaces.Box(-1, 1, (2,)),
            "LaplaceMultiInputLstmPolicy",
            "is for Dict observations, got",
        ),
        (
            spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "mission": spaces.Text(5)}),
            "LaplaceMultiInputLstmPolicy",
            "the observation space holds Text.* under key 'mission', which no policy reads",
        ),
        (
            spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "b": spaces.Dict({"c": spaces.Discrete(3)})}),
            "LaplaceMultiInputLstmPolicy",
            r"the observation space holds Dict\('c': Discrete\(3\)\) under key 'b', which no policy reads: .*Flatten",
        ),
        (
            spaces.Box(0, 255, (10, 10, 3), np.uint8),
            "LaplaceCnnLstmPolicy",
            r"images of shape \(3, 10, 10\) are",
        ),
        (
            spaces.Dict({"a": spaces.Box(0, 255, (3, 35, 64), np.uint8)}),
            "LaplaceMultiInputLstmPolicy",
            r"images of shape \(3, 35, 64\) are too small for SB3's NatureCNN, which takes 36 x 36",
        ),
    ],
)
def test_observation_spaces_that_cannot_be_read(space: spaces.Space, policy: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LaplaceRecurrentPPO(policy, RandomEnv(space), n_steps=8)


def test_a_policy_of_its_own_refuses_the_same() -> None:
    space = spaces.Dict({"a": spaces.Dict({"b": spaces.Discrete(3)})})
    with pytest.raises(ValueError, match=r"Dict\('b': Discrete\(3\)\) under key 'a', which no policy reads"):
        LaplaceMultiInputLstmPolicy(space, spaces.Discrete(2), lambda _: 1e-3)


def test_the_smallest_image() -> None:
    env = DummyVecEnv([lambda: RandomEnv(spaces.Box(0, 255, (36, 36, 3), np.uint8))])
    LaplaceRecurrentPPO("LaplaceCnnLstmPolicy", env, n_steps=8).predict(env.reset())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_steps": 0}, "n_steps must be an integer >= 1, got 0"),
        ({"n_steps": 16.0}, "n_steps must be an integer >= 1, got 16.0"),
        ({"batch_size": 0}, "batch_size must be .*1, got 0"),
        ({"n_epochs": 0}, "n_epochs must be .*1, got 0"),
    ],
)
def test_sizes(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_model(**arguments)


def test_a_gymnasium_reset_passed_to_predict() -> None:
    model = small_model()
    with pytest.raises(ValueError, match="observation must be an array or a dict of arrays, got a tuple"):
        model.predict(RandomEnv().reset())


@pytest.mark.parametrize("start", [1, -2])
def test_discrete_actions_that_do_not_start_at_0(start: int) -> None:
    """As in SB3 actions are counted from 0 everywhere: in predictions, rollouts, targets and decoded rewards."""

    class Shifted(RandomEnv):
        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
            assert action in (0, 1, 2)
            obs, reward, terminated, truncated, _ = super().step(action + start)
            return obs, reward, terminated, truncated, {"target": 2}

    env = DummyVecEnv([lambda: Shifted(action_space=spaces.Discrete(3, start=start))] * 2)
    model = small_model(env, target_coef=1.0, reward_coef=1.0)
    model.learn(24)
    actions, state = model.predict(env.reset())
    assert set(actions.tolist()) <= {0, 1, 2}
    decoded = model.policy.predict_reward(state)
    assert decoded.shape == (2, 3)
    for action in range(3):
        np.testing.assert_allclose(
            model.policy.predict_reward(state, np.full(2, action)), decoded[:, action], rtol=1e-5
        )
    with pytest.raises(ValueError, match="counted from 0, got 3"):
        model.policy.predict_reward(state, np.array([0, 3]))


# -- conversion -----------------------------------------------------------------------------------------------


def test_conversion_keeps_what_a_model_of_ours_has() -> None:
    kwargs = {"latent_dim": 3, "posterior_kwargs": {"covariance": "full", "prior_std": 0.3}}
    model = small_model(policy_kwargs=kwargs, stats_window_size=7)
    model.learn(36)
    converted = LaplaceRecurrentPPO.from_recurrent_ppo(model)
    layer = converted.policy.latent_layer
    assert (layer.latent_dim, layer.covariance, layer.prior_std) == (3, "full", 0.3)
    assert th.equal(layer.mean_net.weight, model.policy.latent_layer.mean_net.weight)
    assert converted._stats_window_size == converted.ep_info_buffer.maxlen == 7
    obs = model.env.reset()
    np.testing.assert_array_equal(
        converted.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0]
    )
    other = LaplaceRecurrentPPO.from_recurrent_ppo(model, posterior="variational", latent_dim=None)
    assert other.policy.latent_layer.latent_dim == 8


def test_conversion_for_another_number_of_environments(tmp_path: Path) -> None:
    theirs = RecurrentPPO("MlpLstmPolicy", make_vec_env("CartPole-v1", 2), n_steps=8, stats_window_size=9)
    theirs.learn(16)
    theirs.save(tmp_path / "theirs")
    model = LaplaceRecurrentPPO.from_recurrent_ppo(tmp_path / "theirs", env=make_vec_env("CartPole-v1", 5))
    assert model.n_envs == 5
    assert model._stats_window_size == 9
    model.learn(40)


def test_conversion_keeps_the_fused_optimizer() -> None:
    theirs = RecurrentPPO("MlpLstmPolicy", "CartPole-v1", n_steps=8, policy_kwargs={"lstm_hidden_size": 4})
    theirs.learn(8)
    model = LaplaceRecurrentPPO.from_recurrent_ppo(theirs)
    fresh = small_model().policy.optimizer
    assert [group["fused"] for group in model.policy.optimizer.param_groups] == [True]
    assert [group["fused"] for group in fresh.param_groups] == [True]
    assert model.policy.optimizer.state[model.policy.lstm_actor.weight_hh_l0]["step"] > 0
    model.learn(8)
