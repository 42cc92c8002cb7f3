"""Recurrent PPO whose agent acts on a Laplace posterior over the task latent."""

import io
import warnings
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule, explained_variance, obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv

from sb3_laplace.algorithm.buffers import SequenceRolloutBuffer
from sb3_laplace.algorithm.losses import LossSettings, total_loss
from sb3_laplace.algorithm.step_data import AuxiliaryReader, truncated_values
from sb3_laplace.checks import check_integer, check_no_nan, check_not_negative
from sb3_laplace.policies.laplace_lstm_policy import (
    LaplaceCnnLstmPolicy,
    LaplaceLstmPolicy,
    LaplaceMultiInputLstmPolicy,
)
from sb3_laplace.policies.reward_decoder import check_decode_window
from sb3_laplace.policies.types import SequenceRolloutBufferSamples
from sb3_laplace.posteriors import LatentPosterior

#: The largest power of ten that cost the bandit task less than a tenth of its learning speed
DEFAULT_KL_COEF = 1e-4

SelfLaplaceRecurrentPPO = TypeVar("SelfLaplaceRecurrentPPO", bound="LaplaceRecurrentPPO")


class LaplaceRecurrentPPO(RecurrentPPO):
    """Proximal Policy Optimization for recurrent policies with a posterior over the task latent.

    A drop-in for sb3-contrib's :class:`~sb3_contrib.RecurrentPPO`: between the LSTM and the heads stands a
    posterior (by default the Laplace approximation of the recurrent state), which is watched, sampled
    and, with ``kl_coef``, regularised. With K = 0 samples and kl_coef = 0 it optimises what RecurrentPPO
    optimises. Minibatches are whole sequences. ``ent_coef``, ``kl_coef``, ``policy_coef``, ``target_coef`` and
    ``reward_coef`` may be functions of the progress remaining (from 1 to 0).

    Paper: de Vries, He, de Weerdt, Spaan, "Bayesian Meta-Reinforcement Learning with Laplace Variational
    Recurrent Networks", RLC 2025, https://arxiv.org/abs/2505.18591

    :param policy: "LaplaceLstmPolicy", "LaplaceCnnLstmPolicy", "LaplaceMultiInputLstmPolicy" or a subclass
    :param env: the environment to learn from (if registered in Gymnasium, can be str)
    :param learning_rate: the learning rate, it can be a function of the progress remaining (from 1 to 0)
    :param n_steps: number of steps for each environment per update
    :param batch_size: minibatch size in steps: as many whole sequences as fit, one at least. None takes
        the whole rollout.
    :param n_epochs: number of epochs when optimizing the surrogate loss
    :param gamma: discount factor
    :param gae_lambda: trade-off of bias against variance for Generalized Advantage Estimation
    :param clip_range: clipping parameter, it can be a function of the progress remaining
    :param clip_range_vf: clipping parameter for the value function; None for no clipping
    :param normalize_advantage: whether to normalize the advantage
    :param ent_coef: entropy coefficient of the loss
    :param vf_coef: value function coefficient of the loss
    :param kl_coef: coefficient of the mean KL(q_t || sg(q_{t-1})), in nats, of the loss (paper, section 4).
        None is 1e-4, or 0 for a posterior that is a point. With a full covariance anything but 0 stores a D x D matrix
        for every step.
    :param policy_coef: coefficient of PPO's own terms (clip loss, entropy, value loss): with 0 the agent learns by the
        terms below alone
    :param target_coef: coefficient of supervised learning: the negative log-likelihood, in nats, of
        ``info["target"]`` under the policy (with K samples: under the mixture). Targets are actions; where they are in
        another unit, the environment has an attribute ``action_scale`` and the target of the action is
        ``target / action_scale``.
    :param reward_coef: coefficient of the reward decoder's loss (paper, section 5), in nats, see
        ``reward_decoder_kwargs`` of the policy
    :param decode_window: which rewards are decoded from the latent at t: those of the steps t - decode_window to
        t + decode_window, or "trial" for all (VariBAD, Zintgraf et al. 2020), within the episode and the sequence. A
        window says more about all actions late in a trial, and too much early: the later rewards are those of actions
        that had turned out well by then.
    :param max_grad_norm: maximum value for the gradient clipping
    :param use_sde: whether to use generalized State Dependent Exploration (with at most one sample)
    :param sde_sample_freq: sample a new noise matrix every n steps when using gSDE (-1: once a rollout)
    :param target_kl: limit on the KL divergence between updates; None for no limit. Not for ``policy_coef=0``.
    :param sequence_length: longest sequence the recurrent network is trained on, in steps; by default
        batch_size, as in RecurrentPPO. n_steps is cut into the fewest nearly equal sequences.
    :param stats_window_size: number of episodes that the rollout logging averages
    :param tensorboard_log: the log location for TensorBoard (None for no logging)
    :param policy_kwargs: arguments of the policy, see :class:`~sb3_laplace.LaplaceLstmPolicy`
    :param verbose: verbosity level: 0 no output, 1 info, 2 debug
    :param seed: seed for the pseudo random generators
    :param device: device (cpu, cuda, ...) on which the code should be run; "auto" takes the GPU if possible
    :param _init_setup_model: whether to build the network at the creation of the instance
    :raises ValueError: if an argument is out of range, or the policy is not one of ours
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "LaplaceLstmPolicy": LaplaceLstmPolicy,
        "LaplaceCnnLstmPolicy": LaplaceCnnLstmPolicy,
        "LaplaceMultiInputLstmPolicy": LaplaceMultiInputLstmPolicy,
    }
    policy: LaplaceLstmPolicy
    rollout_buffer: SequenceRolloutBuffer

    def __init__(
        self,
        policy: str | type[LaplaceLstmPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int = 128,
        batch_size: int | None = 128,
        n_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.2,
        clip_range_vf: float | Schedule | None = None,
        normalize_advantage: bool = True,
        ent_coef: float | Schedule = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        target_kl: float | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        kl_coef: float | Schedule | None = None,
        sequence_length: int | None = None,
        policy_coef: float | Schedule = 1.0,
        target_coef: float | Schedule = 0.0,
        reward_coef: float | Schedule = 0.0,
        decode_window: int | str = 0,
        _init_setup_model: bool = True,
    ) -> None:
        # Before the parent builds the model, which reads them
        self.kl_coef = kl_coef
        self.sequence_length = sequence_length
        self.policy_coef = policy_coef
        self.target_coef = target_coef
        self.reward_coef = reward_coef
        self.decode_window = decode_window
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            batch_size=batch_size,
            n_epochs=n_epochs,
            gamma=gamma,
            gae_lambda=gae_lambda,
            clip_range=clip_range,
            clip_range_vf=clip_range_vf,
            normalize_advantage=normalize_advantage,
            ent_coef=ent_coef,  # type: ignore[arg-type]
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            target_kl=target_kl,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=_init_setup_model,
        )

    def _get_policy_from_name(self, policy_name: str) -> type[BasePolicy]:
        if policy_name not in self.policy_aliases:
            raise ValueError(f"policy must be one of {list(self.policy_aliases)} or a subclass, got {policy_name!r}.")
        return self.policy_aliases[policy_name]

    def _check_arguments(self) -> int:
        """Check what the parent class does not know.

        :return: the longest sequence, in steps
        :raises ValueError: naming the argument
        """
        if not issubclass(self.policy_class, LaplaceLstmPolicy):
            raise ValueError(
                f"policy must be one of {list(self.policy_aliases)} or a subclass, got {self.policy_class.__name__}: "
                "this is no LaplaceRecurrentPPO model or policy."
            )
        for name in ("n_steps", "batch_size", "n_epochs"):
            if name != "batch_size" or self.batch_size is not None:
                check_integer(name, getattr(self, name), minimum=1)
        for name in ("ent_coef", "kl_coef", "policy_coef", "target_coef", "reward_coef"):
            if name != "kl_coef" or self.kl_coef is not None:
                self._coefficient(name, progress_remaining=1.0)
        self.decode_window = check_decode_window(self.decode_window)
        if self.sequence_length is None:
            return min(self.n_steps, self.n_steps if self.batch_size is None else self.batch_size)
        check_integer("sequence_length", self.sequence_length, minimum=1)
        if self.sequence_length > self.n_steps:
            raise ValueError(f"sequence_length must be <= n_steps = {self.n_steps}, got {self.sequence_length!r}.")
        if self.batch_size is not None and self.batch_size < self.sequence_length:
            raise ValueError(
                f"batch_size must hold one sequence at least: got {self.batch_size!r}, "
                f"less than sequence_length = {self.sequence_length}."
            )
        return self.sequence_length

    def _coefficient(self, name: str, progress_remaining: float) -> float:
        """Value of a coefficient that is a number or a schedule.

        :raises ValueError: if it is negative or not finite
        """
        value = getattr(self, name)
        # SB3's progress falls below zero where the last rollout passes total_timesteps
        return check_not_negative(name, value(max(0.0, progress_remaining)) if callable(value) else value)

    def _is_on(self, name: str) -> bool:
        """Whether the term of a coefficient may be on: a schedule may pass through zero."""
        value = getattr(self, name)
        return callable(value) or value > 0

    @property
    def _with_kl(self) -> bool:
        return self._is_on("kl_coef")

    def _setup_model(self) -> None:
        sequence_length = self._check_arguments()
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        if self._is_on("reward_coef") and self.policy_kwargs.get("reward_decoder_kwargs") is None:
            self.policy_kwargs = {**self.policy_kwargs, "reward_decoder_kwargs": {}}
        self.policy = self.policy_class(  # type: ignore[assignment]
            self.observation_space,
            self.action_space,
            self.lr_schedule,
            use_sde=self.use_sde,
            **self.policy_kwargs,
        ).to(self.device)
        if isinstance(self.policy._own_parameters["posterior"], str):
            # Saved with the model: a later version may have another default
            given = self.policy_kwargs.get("posterior_kwargs") or {}
            resolved = {**given, "prior_std": self.policy.latent_layer.prior_std}
            self.policy_kwargs = {**self.policy_kwargs, "posterior_kwargs": resolved}
        if self.kl_coef is None:
            self.kl_coef = 0.0 if self.policy.latent_layer.is_point else DEFAULT_KL_COEF
        if not any(self._is_on(name) for name in ("policy_coef", "target_coef", "reward_coef", "kl_coef")):
            raise ValueError("No term of the loss is on: policy_coef, target_coef, reward_coef and kl_coef are all 0.")
        if self._with_kl and self.policy.latent_layer.is_point:
            raise ValueError(f"kl_coef must be 0 with posterior='point', which has no KL; got {self.kl_coef!r}.")
        self._last_lstm_states = self.policy.initial_states(self.n_envs)  # type: ignore[assignment]
        self.rollout_buffer = SequenceRolloutBuffer(
            self.n_steps,
            self.observation_space,
            self.action_space,
            self.device,
            gae_lambda=self.gae_lambda,
            gamma=self.gamma,
            n_envs=self.n_envs,
            sequence_length=sequence_length,
        )
        self.clip_range = FloatSchedule(self.clip_range)
        if self.clip_range_vf is not None:
            if isinstance(self.clip_range_vf, (float, int)) and self.clip_range_vf <= 0:
                raise ValueError(f"clip_range_vf must be positive or None, got {self.clip_range_vf!r}.")
            self.clip_range_vf = FloatSchedule(self.clip_range_vf)

    def set_parameters(
        self,
        load_path_or_dict: Any,
        exact_match: bool = True,
        device: th.device | str = "auto",
    ) -> None:
        """SB3's; an agent saved without a reward decoder keeps the one that it has been given since.

        :param load_path_or_dict: path of a zip, or parameters by name as :meth:`get_parameters` returns them
        :param exact_match: whether the parameters must be all of the model's
        :param device: device on which the code should run
        """
        given = load_path_or_dict
        if not isinstance(given, dict):
            _, given, _ = load_from_zip_file(given, device=device, load_data=False)
        own = {name: part for name, part in self.policy.state_dict().items() if name.startswith("reward_decoder.")}
        if own and "policy" in given and not own.keys() & given["policy"].keys():
            warnings.warn("The saved agent has no reward decoder: this one, and the optimizer, start afresh.")
            given = {"policy": {**given["policy"], **own}, "policy.optimizer": self.policy.optimizer.state_dict()}
        super().set_parameters(given, exact_match, device)

    @classmethod
    def from_recurrent_ppo(
        cls: type[SelfLaplaceRecurrentPPO],
        model_or_path: "RecurrentPPO | str | Path | io.BufferedIOBase",
        env: GymEnv | None = None,
        posterior_kwargs: dict[str, Any] | None = None,
        n_posterior_samples: int = 0,
        posterior: str | type[LatentPosterior] = "laplace",
        latent_dim: int | None = None,
        kl_coef: float | Schedule = 0.0,
        device: th.device | str = "auto",
    ) -> SelfLaplaceRecurrentPPO:
        """Make a trained RecurrentPPO agent Bayesian, without training it again (paper, section 4).

        With the identity latent and no samples every action, value and log-probability is unchanged, and
        the posterior is there: ``model.policy.posterior(state)``. Training can go on from it. Weights that
        exist in both agents are kept; where the posterior or a latent_dim brings others they are
        initialised, and the log says which. A LaplaceRecurrentPPO model can be given another posterior the same
        way. Loading a zip runs the pickled code in it, as SB3 does.

        :param model_or_path: a sb3-contrib RecurrentPPO model, or its zip
        :param env: environment to go on with; by default the model's own
        :param posterior_kwargs: keywords of the posterior
        :param n_posterior_samples: number of samples K to act on; 0 acts as before
        :param posterior: name or class of the posterior
        :param latent_dim: number of latent units; None for the identity, which keeps the agent what it is
        :param kl_coef: coefficient of the KL in training that goes on
        :param device: device of the converted model
        :raises ValueError: if the model is not a recurrent one, or its policy is a custom class
        """
        # What is built on this class imports it
        from sb3_laplace.posthoc.convert import convert

        return convert(
            cls,
            model_or_path,
            env,
            device,
            posterior_kwargs=posterior_kwargs or {},
            n_posterior_samples=n_posterior_samples,
            posterior=posterior,
            latent_dim=latent_dim,
            kl_coef=kl_coef,
        )  # type: ignore[return-value]

    # -- rollout ----------------------------------------------------------------------------------------

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Fill the rollout buffer by acting on (draws of) the posterior.

        Callbacks find in their ``locals`` what SB3's have, and ``step``, the
        :class:`~sb3_laplace.policies.laplace_lstm_policy.PolicyStep` with the posterior.

        :param env: the training environment
        :param callback: called at each step, and at the beginning and end of the rollout
        :param rollout_buffer: the buffer to fill
        :param n_rollout_steps: number of steps to collect per environment
        :return: False if the callback ended the rollout prematurely
        :raises ValueError: if an observation holds NaN or a value is not finite
        """
        assert isinstance(rollout_buffer, SequenceRolloutBuffer), f"{rollout_buffer} holds no sequences"
        assert self._last_obs is not None, "No previous observation was provided"
        assert self._last_episode_starts is not None
        self.policy.set_training_mode(False)
        rollout_buffer.reset()
        if self.use_sde:
            self.policy.reset_noise(env.num_envs)
        callback.on_rollout_start()
        states: RNNStates = self._last_lstm_states  # type: ignore[assignment]
        auxiliary = AuxiliaryReader(env, self.policy, self._is_on("target_coef"), self._is_on("reward_coef"))

        for n_steps in range(n_rollout_steps):
            if self.use_sde and self.sde_sample_freq > 0 and n_steps % self.sde_sample_freq == 0:
                self.policy.reset_noise(env.num_envs)
            check_no_nan(self._last_obs)
            episode_starts: np.ndarray = self._last_episode_starts
            with th.inference_mode():
                obs_tensor = obs_as_tensor(self._last_obs, self.device)  # type: ignore[arg-type]
                starts_tensor = th.as_tensor(episode_starts, dtype=th.float32, device=self.device)
                step = self.policy.act(obs_tensor, states, starts_tensor)
            values, log_probs = step.values, step.log_prob
            actions = step.actions.cpu().numpy()
            clipped_actions = self.policy.to_env_actions(actions)
            new_obs, rewards, dones, infos = env.step(clipped_actions)
            self.num_timesteps += env.num_envs

            callback.update_locals(locals())
            if not callback.on_step():
                return False
            columns = auxiliary.read(new_obs, rewards, dones, infos)
            if dones.any():
                self._update_info_buffer(infos, dones)
                truncated, last_values = truncated_values(self.policy, dones, infos, step.states)
                rewards = rewards.copy()
                rewards[truncated] += self.gamma * last_values
            with th.inference_mode():
                rollout_buffer.add(
                    obs_tensor,
                    step.actions,
                    rewards,
                    episode_starts,
                    values,
                    log_probs,
                    lstm_states=self.policy.sequence_states(states),
                    noise=step.noise,
                    kl_memory=self.policy.latent_layer.kl_memory(step.posterior) if self._with_kl else None,
                    auxiliary=columns,
                )
            states = step.states
            self._last_obs = new_obs  # type: ignore[assignment]
            self._last_episode_starts = dones
            self._last_lstm_states = states  # type: ignore[assignment]

        with th.inference_mode():
            starts_tensor = th.as_tensor(dones, dtype=th.float32, device=self.device)
            obs_tensor = obs_as_tensor(new_obs, self.device)  # type: ignore[arg-type]
            values = self.policy.predict_values(obs_tensor, states.vf, starts_tensor)
        if not np.isfinite(rollout_buffer.values).all():
            raise ValueError(
                "The policy's values are not finite any more: the weights have diverged. "
                "Lower learning_rate or max_grad_norm, or normalize observations and rewards (VecNormalize)."
            )
        rollout_buffer.compute_returns_and_advantage(last_values=values, dones=dones)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    # -- update -----------------------------------------------------------------------------------------

    def train(self) -> None:
        """Update the policy with the rollout buffer."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        settings = self._loss_settings()
        parameters = list(self.policy.parameters())
        target_kl = self.target_kl if self._is_on("policy_coef") else None
        logs: dict[str, list[float]] = {}
        continue_training = True
        for epoch in range(self.n_epochs):
            for samples in self.rollout_buffer.get(self.batch_size):
                loss, terms = self._loss(samples, settings)
                for name, value in terms.items():
                    logs.setdefault(name, []).append(value)
                if target_kl is not None and terms["approx_kl"] > 1.5 * target_kl:
                    continue_training = False
                    if self.verbose >= 1:
                        print(f"Early stopping at step {epoch} due to reaching max kl: {terms['approx_kl']:.2f}")
                    break
                self._descend(loss, parameters)
            self._n_updates += 1
            if not continue_training:
                break

        for name, values in logs.items():
            # As RecurrentPPO: the last loss
            self.logger.record(f"train/{name}", values[-1] if name == "loss" else np.mean(values))
        buffer = self.rollout_buffer
        self.logger.record(
            "train/explained_variance", explained_variance(buffer.values.flatten(), buffer.returns.flatten())
        )
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", th.exp(self.policy.log_std).mean().item())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/clip_range", settings.clip_range)
        if settings.clip_range_vf is not None:
            self.logger.record("train/clip_range_vf", settings.clip_range_vf)

    def _descend(self, loss: th.Tensor, parameters: list[th.nn.Parameter]) -> None:
        """One step of the optimizer."""
        if not loss.requires_grad:
            # All coefficients are zero, as at the end of schedules
            return
        # What zero_grad() does, without its profiling
        for parameter in parameters:
            parameter.grad = None
        loss.backward()
        th.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
        self.policy.optimizer.step()

    def _loss_settings(self) -> LossSettings:
        """Coefficients of the loss at the present progress: the same for all minibatches of an update."""
        progress = self._current_progress_remaining
        return LossSettings(
            clip_range=self.clip_range(progress),  # type: ignore[operator]
            clip_range_vf=None if self.clip_range_vf is None else self.clip_range_vf(progress),  # type: ignore[operator]
            normalize_advantage=self.normalize_advantage,
            ent_coef=self._coefficient("ent_coef", progress),
            vf_coef=self.vf_coef,
            kl_coef=self._coefficient("kl_coef", progress),
            policy_coef=self._coefficient("policy_coef", progress),
            target_coef=self._coefficient("target_coef", progress),
            reward_coef=self._coefficient("reward_coef", progress),
            decode_window=check_decode_window(self.decode_window),
        )

    def _loss(
        self, samples: SequenceRolloutBufferSamples, settings: LossSettings
    ) -> tuple[th.Tensor, dict[str, float]]:
        """Loss of one minibatch, and its terms by name.

        :raises ValueError: if the loss is not finite
        """
        evaluation = self.policy.evaluate_sequences(
            samples.observations,
            samples.actions,
            samples.lstm_states,
            samples.episode_starts,
            noise=samples.noise,
            kl_memory=samples.kl_memory,
            with_kl=self._with_kl,
        )
        return total_loss(self.policy, evaluation, samples, settings)

    def learn(
        self: SelfLaplaceRecurrentPPO,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "LaplaceRecurrentPPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfLaplaceRecurrentPPO:
        return super().learn(
            total_timesteps=total_timesteps,
            callback=callback,
            log_interval=log_interval,
            tb_log_name=tb_log_name,
            reset_num_timesteps=reset_num_timesteps,
            progress_bar=progress_bar,
        )
