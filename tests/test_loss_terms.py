"""The terms of the loss together: the invariants with all of them on, schedules, switches, bad arguments."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_laplace import LaplaceRecurrentPPO
from tests.helpers import ACTION_SPACES
from tests.target_env import ALL_TERMS, loss_of, target_env
from tests.test_laplace_recurrent_ppo import POSTERIORS, collect, largest_log_ratio, small_model


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
    assert not next(iter(loaded.rollout_buffer.get(None))).columns


def test_a_point_has_no_kl_to_switch_on() -> None:
    model = small_model(policy_kwargs={"posterior": "point"})
    model.learn(36)
    model.kl_coef = 0.1
    with pytest.raises(ValueError, match=r"kl_coef must be 0 with posterior='point', which has no KL; got 0\.1"):
        model.learn(36)


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
        (
            {"policy_coef": 0, "kl_coef": 0},
            "No term .* is on: policy_coef, kl_coef, target_coef, reward_coef are all 0",
        ),
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


def test_total_loss_refuses_nan() -> None:
    model = small_model(target_env(), target_coef=1.0)
    collect(model)
    samples = next(iter(model.rollout_buffer.get(None)))
    broken = samples._replace(advantages=samples.advantages * float("nan"))
    with pytest.raises(ValueError, match="The loss is not finite"):
        loss_of(model, broken)
