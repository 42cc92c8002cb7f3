"""Action masks: sb3-contrib's distributions are the oracle, and environments that refuse what they do not allow."""

import re
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from hypothesis import given
from hypothesis import strategies as st
from sb3_contrib.common.maskable.callbacks import MaskableEvalCallback
from sb3_contrib.common.maskable.distributions import make_masked_proba_distribution
from sb3_contrib.common.maskable.evaluation import evaluate_policy
from sb3_contrib.common.wrappers import ActionMasker
from stable_baselines3.common.distributions import make_proba_distribution
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecMonitor, VecNormalize

from sb3_laplace import (
    GymnasiumVecEnv,
    LaplaceRecurrentPPO,
    PosteriorCallback,
    PosteriorEvalCallback,
    calibrate_prior_std,
    posterior_trace,
)
from sb3_laplace.algorithm.masking import ActionMasks
from sb3_laplace.checks import check_action_masks
from sb3_laplace.policies.distributions import masked, mix
from sb3_laplace.vec_env.masks import ReportedMasks
from tests.helpers import RandomEnv, make_policy, randomize
from tests.masked_env import SIZES, SPACES, MaskedEnv, MaskedVectorEnv, random_masks
from tests.test_laplace_recurrent_ppo import collect, small_model

POSTERIORS = [("laplace", 4), ("laplace", 1), ("laplace", 0), ("point", 0)]


def masked_vec_env(kind: str = "discrete", n_envs: int = 3, seed: int = 0, **kwargs: Any) -> DummyVecEnv:
    env = DummyVecEnv([lambda: Monitor(MaskedEnv(kind, **kwargs)) for _ in range(n_envs)])
    env.seed(seed)
    return env


def masked_model(kind: str = "discrete", n_samples: int = 1, posterior: str = "laplace", **kwargs: Any) -> Any:
    env = kwargs.pop("env", None) or masked_vec_env(kind)
    policy_kwargs = {"n_posterior_samples": n_samples, "posterior": posterior, **kwargs.pop("policy_kwargs", {})}
    model = small_model(env, policy_kwargs=policy_kwargs, **kwargs)
    randomize(model.policy, 0.3)
    return model


def actions_of(kind: str) -> th.Tensor:
    """Every action of a space, shape (n, ...)."""
    every = th.tensor(list(product(*(range(size) for size in SIZES[kind]))))
    if kind == "multi_binary":
        return every.float()
    return every.flatten() if kind == "discrete" else every


# -- distributions ------------------------------------------------------------------------------------------


def components(kind: str, n: int, seed: int = 0) -> tuple[th.Tensor, th.Tensor]:
    """Random logits of SB3's distribution and masks."""
    generator = th.Generator().manual_seed(seed)
    n_logits = 3 if kind == "multi_binary" else sum(SIZES[kind])
    masks = random_masks(np.random.default_rng(seed), SIZES[kind], n)
    return 3 * th.randn(n, n_logits, generator=generator), th.as_tensor(masks)


def policys_own(kind: str) -> Any:
    """The distribution that a policy has, a function of logits."""
    dist = make_policy(action_space=SPACES[kind]).action_dist
    return lambda logits: dist.proba_distribution(action_logits=logits)


@pytest.mark.parametrize("kind", SPACES)
def test_a_component_is_sb3_contribs(kind: str) -> None:
    """Log-probabilities, entropies, modes and gradients, of every action that is allowed."""
    logits, masks = components(kind, 200)
    # A bit is a choice between 0, whose logit is 0, and 1
    theirs_of = {"multi_binary": lambda x: th.stack((th.zeros_like(x), x), -1).flatten(1)}.get(kind, lambda x: x)
    results = []
    for is_ours in (True, False):
        given_logits = logits.clone().requires_grad_()
        if is_ours:
            dist = mix(policys_own(kind), given_logits, 1, masks)
        else:
            dist = make_masked_proba_distribution(SPACES[kind]).proba_distribution(theirs_of(given_logits))
            dist.apply_masking(masks)
        log_probs = th.stack([dist.log_prob(action.expand(200, *action.shape)) for action in actions_of(kind)])
        possible = log_probs > -1e4
        loss = dist.entropy().sum() + log_probs[possible].sum()
        (gradient,) = th.autograd.grad(loss, given_logits)
        results.append((log_probs.exp(), log_probs[possible], possible, dist.entropy(), dist.mode().float(), gradient))
    for ours, theirs in zip(*results, strict=True):
        th.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", SPACES)
def test_a_mixture_is_that_of_masked_components(kind: str) -> None:
    """By torch: the mean over components of probabilities, each given that the action is allowed."""
    logits, masks = components(kind, 4 * 50)
    masks = masks[:50]
    mixture = mix(policys_own(kind), logits, 4, masks)
    every = actions_of(kind)
    allowed = th.stack([allowed_by(masks, action, kind) for action in every])
    own = make_proba_distribution(SPACES[kind]).proba_distribution(action_logits=logits)
    unmasked = th.stack([own.log_prob(action.expand(200, *action.shape).float()).exp() for action in every])
    of_component = unmasked.view(-1, 4, 50) * allowed.unsqueeze(1)
    expected = (of_component / of_component.sum(0)).mean(1)
    ours = th.stack([mixture.log_prob(action.expand(50, *action.shape)).exp() for action in every])
    th.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)
    assert (ours[~allowed] == 0).all()
    assert mixture.entropy().isfinite().all()


def allowed_by(masks: th.Tensor, action: th.Tensor, kind: str) -> th.Tensor:
    offsets = np.cumsum([0, *SIZES[kind][:-1]])
    return masks[:, th.as_tensor(action.reshape(-1).long().numpy() + offsets)].all(1)


@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.parametrize("n_components", [1, 4])
def test_what_is_not_allowed_is_never_sampled(kind: str, n_components: int) -> None:
    n = 100_000
    logits, masks = components(kind, 50)
    # What is not allowed is what the policy would do
    forbidden = ~masks if kind != "multi_binary" else ~masks.view(-1, 3, 2)[..., 1]
    logits = (logits + 20 * forbidden).repeat(n // 50 * n_components, 1)
    masks = masks.repeat(n // 50, 1)
    dist = mix(policys_own(kind), logits, n_components, masks)
    for actions in (dist.sample(), dist.mode()):
        offsets = th.as_tensor(np.cumsum([0, *SIZES[kind][:-1]]))
        assert masks.gather(1, actions.long().view(n, -1) + offsets).all()
        assert dist.log_prob(actions).isfinite().all()


@pytest.mark.parametrize("kind", SPACES)
@given(seed=st.integers(0, 10_000), n_components=st.integers(1, 5), scale=st.sampled_from([0.1, 1.0, 30.0, 1000.0]))
def test_masked_numbers_are_finite(kind: str, seed: int, n_components: int, scale: float) -> None:
    """Entropy, log-probability and gradient of what is drawn, whatever logits and masks."""
    logits, masks = components(kind, 6 * n_components, seed)
    logits = (scale * logits).requires_grad_()
    dist = mix(policys_own(kind), logits, n_components, masks[:6])
    log_prob, entropy = dist.log_prob(dist.sample()), dist.entropy()
    (gradient,) = th.autograd.grad(log_prob.sum() + entropy.sum(), logits)
    assert all(part.isfinite().all() for part in (log_prob, entropy, gradient))
    assert (entropy >= -1e-4).all()


@pytest.mark.parametrize("kind", SPACES)
def test_a_mask_that_allows_all_changes_nothing(kind: str) -> None:
    policy = make_policy(action_space=SPACES[kind], n_posterior_samples=3)
    obs, states, starts = th.randn(6, 4), policy.initial_states(6), th.zeros(6)
    steps = []
    for masks in (None, th.ones(6, sum(SIZES[kind]), dtype=th.bool)):
        th.manual_seed(0)
        steps.append(policy.act(obs, states, starts, action_masks=masks))
    assert th.equal(steps[0].actions, steps[1].actions)
    th.testing.assert_close(steps[0].log_prob, steps[1].log_prob)


def test_other_distributions_cannot_be_masked() -> None:
    box = make_proba_distribution(spaces.Box(-1, 1, (2,))).proba_distribution(th.zeros(1, 2), th.zeros(2))
    with pytest.raises(ValueError, match=r"action_masks need SB3's distributions .* got a DiagGaussianDistribution"):
        masked(box, th.ones(1, 2, dtype=th.bool))


# -- rollout and update -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.parametrize(("posterior", "n_samples"), POSTERIORS)
@pytest.mark.parametrize("sequence_length", [None, 5])
def test_the_first_ratio_is_one(kind: str, posterior: str, n_samples: int, sequence_length: int | None) -> None:
    """Under the masks of the rollout, which travel with the sequences; without them it is another."""
    model = masked_model(kind, n_samples, posterior, sequence_length=sequence_length)
    collect(model)
    collect(model)
    distance, distance_without = 0.0, 0.0
    for samples in model.rollout_buffer.get(model.batch_size):
        masks = samples.columns["action_masks"]
        assert masks.dtype == th.bool
        for given_masks in (masks, None):
            with th.no_grad():
                evaluation = model.policy.evaluate_sequences(
                    samples.observations,
                    samples.actions,
                    samples.lstm_states,
                    samples.episode_starts,
                    samples.noise,
                    action_masks=given_masks,
                )
            difference = (evaluation.log_prob - samples.old_log_prob).abs()
            largest = float(difference.max() if samples.mask is None else difference[samples.mask].max())
            if given_masks is None:
                distance_without = max(distance_without, largest)
            else:
                distance = max(distance, largest)
    assert distance < 1e-4
    assert distance_without > 0.1
    model.train()


@pytest.mark.parametrize("kind", SPACES)
def test_all_terms_of_the_loss_work(kind: str) -> None:
    model = masked_model(
        kind,
        2,
        env=DummyVecEnv([lambda: Monitor(WithTarget(MaskedEnv(kind))) for _ in range(3)]),
        kl_coef="auto",
        target_coef=1.0,
        reward_coef=1.0,
        ent_coef=0.01,
        decode_window="trial",
    )
    model.learn(144, callback=PosteriorCallback(n_watched=3))
    logged = model.logger.name_to_value
    for name in ("target_loss", "reward_loss", "entropy_loss", "approx_kl", "loss"):
        assert np.isfinite(logged[f"train/{name}"])
    assert np.isfinite(logged["posterior/entropy"])


class WithTarget(gym.Wrapper):
    """The action that would have been right is one that is allowed."""

    is_allowed = True

    def step(self, action: Any) -> Any:
        mask = self.env.get_wrapper_attr("action_masks")()
        sizes = SIZES[self.env.get_wrapper_attr("kind")]
        choices = [int(np.flatnonzero(part == self.is_allowed)[-1]) for part in np.split(mask, np.cumsum(sizes)[:-1])]
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward, terminated, truncated, {**info, "target": choices[0] if len(choices) == 1 else choices}


def test_a_target_that_is_not_allowed_is_refused() -> None:
    class Fixed(MaskedEnv):
        def _draw(self) -> None:
            self.mask = np.array([True, False, True, False, False])

    class WrongTarget(WithTarget):
        is_allowed = False

    model = masked_model(env=DummyVecEnv([lambda: Monitor(WrongTarget(Fixed()))]), target_coef=1.0)
    with pytest.raises(
        ValueError,
        match=r"must be an action that action_masks allow, got 4 from environment 0, whose mask is \[1, 0",
    ):
        model.learn(12)


def test_learning_uses_the_masks() -> None:
    """The reward is the index of the action: the agent comes to take the largest that is allowed, wherever it is."""

    class Largest(MaskedEnv):
        def step(self, action: Any) -> Any:
            best = int(np.flatnonzero(self.mask)[-1])
            obs, _, terminated, truncated, info = super().step(action)
            return obs, float(action == best), terminated, truncated, info

    env = DummyVecEnv([lambda: Monitor(Largest()) for _ in range(8)])
    model = small_model(env, n_steps=32, batch_size=128, n_epochs=4, learning_rate=3e-3, gamma=0.0)
    assert np.mean(evaluate_policy(model, env, 10, return_episode_rewards=True)[0]) < 5
    model.learn(8 * 32 * 20)
    masks = check_action_masks([np.eye(5)[:i].sum(0).astype(bool) for i in range(1, 6)], env.action_space, 5)
    actions, _ = model.predict(np.zeros((5, 4), np.float32), deterministic=True, action_masks=masks)
    assert actions.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("use_masking", [None, False])
def test_unmasked_environments_are_left_as_they_are(use_masking: bool | None) -> None:
    """The same random numbers and weights, bit for bit, with the argument as without."""
    weights = []
    for kwargs in ({}, {"use_masking": use_masking}):
        th.manual_seed(0)
        env = DummyVecEnv([lambda: Monitor(RandomEnv()) for _ in range(3)])
        model = small_model(env).learn(72, **kwargs)
        assert not any("action_masks" in name for name in model.rollout_buffer._stored)
        weights.append(th.cat([part.flatten() for part in model.policy.parameters()]))
    assert th.equal(*weights)


def test_masking_can_be_switched_off() -> None:
    class Tolerant(RandomEnv):
        def action_masks(self) -> None:
            raise AssertionError("it was asked")

    model = small_model(DummyVecEnv([lambda: Monitor(Tolerant())]))
    model.learn(24, use_masking=False)
    # Who learned without masks is evaluated without
    assert posterior_trace(model, model.get_env(), 3, progress_bar=False).n_trials == 3
    with pytest.raises(AssertionError, match="it was asked"):
        model.learn(24)


@pytest.mark.parametrize("weights_only", [False, True])
def test_what_learn_was_given_is_saved(weights_only: bool, tmp_path: Path) -> None:
    model = masked_model()
    model.learn(36)
    model.predict(model.env.reset(), action_masks=np.ones((3, 5), bool))
    model.use_masking = False
    model.save(tmp_path / "model")
    loaded = LaplaceRecurrentPPO.load(tmp_path / "model", env=masked_vec_env(), weights_only=weights_only)
    assert loaded.use_masking is False
    assert loaded._masked_state is None
    assert LaplaceRecurrentPPO.from_recurrent_ppo(loaded, env=masked_vec_env()).use_masking is False
    loaded.learn(36, use_masking=True)


# -- where masks come from ----------------------------------------------------------------------------------


def make_masked() -> MaskedEnv:
    return MaskedEnv()


def mask_fn(env: gym.Env) -> np.ndarray:
    return env.get_wrapper_attr("mask")


class Silent(MaskedEnv):
    """Without the method, for ActionMasker."""

    action_masks = None

    def __getattribute__(self, name: str) -> Any:
        if name == "action_masks":
            raise AttributeError(name)
        return super().__getattribute__(name)


ENVS: dict[str, Any] = {
    "dummy": lambda: DummyVecEnv([lambda: Monitor(make_masked())] * 3),
    "subproc": lambda: SubprocVecEnv([make_masked] * 2, start_method="fork"),
    "masker": lambda: DummyVecEnv([lambda: Monitor(ActionMasker(Silent(), mask_fn))] * 3),
    "monitor": lambda: VecMonitor(DummyVecEnv([make_masked] * 3)),
    "normalized": lambda: VecNormalize(DummyVecEnv([lambda: Monitor(make_masked())] * 3)),
    "sync": lambda: GymnasiumVecEnv(SyncVectorEnv([make_masked] * 3, autoreset_mode=AutoresetMode.SAME_STEP)),
    "sync next step": lambda: GymnasiumVecEnv(SyncVectorEnv([make_masked] * 3)),
    "async": lambda: GymnasiumVecEnv(AsyncVectorEnv([make_masked] * 2, autoreset_mode=AutoresetMode.SAME_STEP)),
    "normalized batch": lambda: VecNormalize(GymnasiumVecEnv(MaskedVectorEnv(3, "infos"))),
    **{
        f"{source} {mode.value}": partial(lambda source, mode: GymnasiumVecEnv(MaskedVectorEnv(3, source, mode)), *pair)
        for pair in product(("infos", "method", "attribute"), AutoresetMode)
        for source, mode in [pair]
    },
}


@pytest.mark.filterwarnings("ignore:.*resets an environment in the step after")
@pytest.mark.parametrize("name", ENVS)
def test_masks_of_every_kind_of_environment(name: str) -> None:
    """All refuse what they do not allow: in training, in traces and in sb3-contrib's evaluation."""
    env: VecEnv = ENVS[name]()
    env.seed(0)
    env.reset()
    model = masked_model(env=env)
    model.learn(12 * env.num_envs * 2, use_masking=True)
    assert (~model.rollout_buffer._stored["columns/action_masks/"]).any()
    trace = posterior_trace(model, env, 6, progress_bar=False)
    assert trace.complete.all()
    evaluate_policy(model, env, 4, deterministic=False)
    env.close()


@pytest.mark.filterwarnings("ignore:.*resets an environment in the step after")
@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("source", ["infos", "method", "attribute"])
def test_batched_masks_are_those_of_the_present_state(source: str, mode: AutoresetMode) -> None:
    base = MaskedVectorEnv(4, source, mode)
    env = GymnasiumVecEnv(base)
    env.seed(0)
    env.reset()
    n_ended = 0
    for _ in range(30):
        masks = ActionMasks(env, None).read("")
        assert masks is not None
        expected = base.masks.astype(bool)
        if mode == AutoresetMode.NEXT_STEP:
            expected[base.ended] = True
        np.testing.assert_array_equal(masks, expected)
        np.testing.assert_array_equal(np.stack(env.env_method("action_masks")), masks)
        _, _, dones, _ = env.step(masks.argmax(1))
        n_ended += int(dones.sum())
    assert n_ended > 10


def test_infos_are_known_from_the_first_reset_on() -> None:
    env = GymnasiumVecEnv(MaskedVectorEnv(2, "infos"))
    assert not env.has_attr("action_masks")
    env.reset()
    assert env.has_attr("action_masks")
    assert not env.has_attr("other")
    with pytest.raises(AttributeError, match="no action_masks"):
        GymnasiumVecEnv(MaskedVectorEnv(2, "none")).action_masks()


def test_every_environment_must_report_its_mask() -> None:
    reported = ReportedMasks(2)
    reported.update({"action_mask": np.ones((2, 5)), "_action_mask": np.array([True, False])})
    with pytest.raises(ValueError, match=r"infos\['action_mask'\] must be there .* environment 1 has none"):
        reported.of_all()
    reported.update({})
    assert not reported.is_known


# -- evaluation ---------------------------------------------------------------------------------------------


class Copycat(gym.Env):
    """The first observation says which action is right in all of the episode: it takes a memory. One is masked."""

    observation_space = spaces.Box(0.0, 1.0, (3,), np.float32)
    action_space = spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.right, self.t = int(self.np_random.integers(2)), 0
        return np.eye(3, dtype=np.float32)[self.right], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        assert action != 2
        self.t += 1
        return np.zeros(3, np.float32), float(action == self.right), self.t == 6, False, {}

    def action_masks(self) -> list[bool]:
        return [True, True, False]


def test_sb3_contribs_evaluation_keeps_the_memory() -> None:
    """Its evaluate_policy never passes the state back: the agent would play without memory."""
    env = DummyVecEnv([lambda: Monitor(Copycat()) for _ in range(4)])
    model = small_model(env, n_steps=24, batch_size=96, n_epochs=4, learning_rate=1e-2, seed=1)
    model.learn(4 * 24 * 25)
    env.seed(5)
    returns, lengths = evaluate_policy(model, env, 12, return_episode_rewards=True)
    assert lengths == [6] * 12
    env.seed(5)
    trace = posterior_trace(model, env, 12, deterministic=True, progress_bar=False)
    assert sorted(returns) == sorted(trace.returns.tolist())
    assert np.mean(returns) == 6.0
    env.seed(5)
    own = model.policy
    # Without: half of the episodes, or all by their first step alone
    forgetful, _ = evaluate_policy(Forgetful(own), env, 12, return_episode_rewards=True)
    assert np.mean(forgetful) < 5.0


class Forgetful:
    def __init__(self, policy: Any) -> None:
        self.policy = policy

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        return self.policy.predict(*args, **kwargs)


def test_a_prediction_with_a_state_ends_what_was_remembered() -> None:
    model = masked_model()
    obs, masks = np.zeros((3, 4), np.float32), np.ones((3, 5), bool)
    first = model.predict(obs, None, np.ones(3), True, masks)[1]
    second = model.predict(obs, None, np.zeros(3), True, masks)[1]
    np.testing.assert_array_equal(second[0], model.policy.predict(obs, first, np.zeros(3), True)[1][0])
    # Of no mask nothing is remembered, nor of a call with a state
    model.predict(obs, second, np.zeros(3), True, masks)
    again = model.predict(obs, None, np.zeros(3), True, masks)[1]
    np.testing.assert_array_equal(again[0], first[0])
    restarted = model.predict(obs, None, None, True, masks)[1]
    np.testing.assert_array_equal(restarted[0], first[0])


def test_callbacks_and_calibration_play_with_masks(tmp_path: Path) -> None:
    model = masked_model(n_samples=2)
    callbacks = [
        PosteriorCallback(n_watched=3),
        PosteriorEvalCallback(masked_vec_env(seed=3), n_eval_trials=4, eval_freq=10, verbose=0),
        MaskableEvalCallback(masked_vec_env(seed=4), n_eval_episodes=4, eval_freq=10, verbose=0),
    ]
    model.learn(36 * 3, callback=callbacks)
    for criterion in ("return", "likelihood"):
        calibration = calibrate_prior_std(
            model, masked_vec_env(seed=5), prior_stds=(0.1, 1.0), n_trials=4, criterion=criterion
        )
        assert np.isfinite(calibration.scores).all()


@pytest.mark.parametrize("kind", SPACES)
def test_traces_are_of_the_masked_policy(kind: str) -> None:
    """Where masks leave one action its entropy is 0, and its probability 1."""
    model = masked_model(kind, 3)

    class Forced(MaskedEnv):
        def _draw(self) -> None:
            self.mask = random_masks(self.np_random, SIZES[kind], 1)[0]
            start = 0
            for size in SIZES[kind]:
                self.mask[start : start + size] = np.arange(size) == self.np_random.integers(size)
                start += size

    trace = posterior_trace(model, DummyVecEnv([lambda: Forced(kind)]), 4, progress_bar=False)
    np.testing.assert_allclose(trace.action_entropy[trace.inside], 0.0, atol=1e-5)
    np.testing.assert_allclose(trace.confidence[trace.inside], 1.0, atol=1e-5)


# -- predict, and bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.parametrize("n_samples", [0, 1, 3])
def test_predict_takes_masks(kind: str, n_samples: int) -> None:
    policy = make_policy(action_space=SPACES[kind], n_posterior_samples=n_samples)
    masks = random_masks(np.random.default_rng(0), SIZES[kind], 40)
    for deterministic in (True, False):
        actions, _ = policy.predict(np.random.default_rng(1).random((40, 4)), None, None, deterministic, masks)
        offsets = np.cumsum([0, *SIZES[kind][:-1]])
        columns = np.asarray(actions).astype(int).reshape(40, -1) + offsets
        assert np.take_along_axis(masks, columns, 1).all()
    one, _ = policy.predict(np.zeros(4), action_masks=masks[0].astype(np.int8).tolist())
    assert np.shape(one) == SPACES[kind].shape


@pytest.mark.parametrize(
    ("kind", "masks", "message"),
    [
        ("discrete", np.ones((2, 4), bool), r"must have shape \(2, 5\) for Discrete\(5\), got \(2, 4\)"),
        ("discrete", np.ones(5, bool), r"must have shape \(2, 5\) .* got \(5,\)"),
        ("discrete", [[True] * 5, [True]], r"must have shape \(2, 5\) .* got \[\(5,\), \(1,\)\]"),
        ("discrete", np.ones((2, 5)), "must be booleans, or integers 0 and 1, got float64 such as"),
        ("discrete", np.full((2, 5), 3), "must be booleans, or integers 0 and 1, got int64 such as"),
        ("discrete", [["a"] * 5] * 2, "must be booleans, or integers 0 and 1, got <U1 such as"),
        ("discrete", np.array([[1] * 5, [0] * 5]), r"leave environment 1 without one valid action of Discrete\(5\)"),
        ("multi_discrete", [[1, 0, 0, 0, 0], [1] * 5], "leave environment 0 without one valid action for choice 1 of"),
        ("multi_binary", [[1] * 6, [1, 1, 0, 0, 1, 1]], "leave environment 1 without one valid action for choice 1 of"),
    ],
)
def test_masks_that_do_not_fit_are_refused(kind: str, masks: Any, message: str) -> None:
    policy = make_policy(action_space=SPACES[kind])
    with pytest.raises(ValueError, match=f"action_masks {message}"):
        policy.predict(np.zeros((2, 4), np.float32), action_masks=masks)


def test_the_environment_and_the_step_are_named() -> None:
    class Stuck(MaskedEnv):
        n_asked = 0

        def action_masks(self) -> np.ndarray:
            type(self).n_asked += 1
            # Two environments: the second, at its fourth step
            return np.full(5, type(self).n_asked != 8)

    Stuck.step = RandomEnv.step
    model = masked_model(env=DummyVecEnv([lambda: Monitor(Stuck())] * 2))
    with pytest.raises(ValueError, match="action_masks at step 3 of the rollout leave environment 1 without one valid"):
        model.learn(24)
    Stuck.n_asked = 0
    with pytest.raises(ValueError, match="action_masks at step 3 after the reset leave environment 1 without one"):
        posterior_trace(model, model.get_env(), 50, progress_bar=False)


def test_use_masking_must_be_possible() -> None:
    model = small_model()
    with pytest.raises(ValueError, match=r"use_masking=True needs .* got one with Discrete\(3\) that has none"):
        model.learn(12, use_masking=True)
    for wrong in (1, "yes", 0):
        with pytest.raises(ValueError, match=f"use_masking must be True, False or None, got {wrong!r}"):
            model.learn(12, use_masking=wrong)
    box = small_model(DummyVecEnv([lambda: RandomEnv(action_space=spaces.Box(-1.0, 1.0, (2,)))]))
    with pytest.raises(ValueError, match="use_masking=True is for Discrete, MultiDiscrete and MultiBinary actions"):
        box.learn(12, use_masking=True)
    with pytest.raises(ValueError, match=re.escape("action_masks are for Discrete, MultiDiscrete and MultiBinary")):
        box.predict(np.zeros(4, np.float32), action_masks=[True, True])
