"""Recurrent PPO whose agent acts on a Laplace posterior over the task latent."""

import io
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch as th
from gymnasium.vector import VectorEnv
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule, explained_variance
from stable_baselines3.common.vec_env import VecEnv

from sb3_laplace.algorithm import distributed
from sb3_laplace.algorithm.buffers import SequenceRolloutBuffer
from sb3_laplace.algorithm.losses import TERMS, LossTerm, PPOTerm, total_loss
from sb3_laplace.algorithm.parallel import loss_of_all_ranks
from sb3_laplace.algorithm.saving import SavedPPO
from sb3_laplace.algorithm.step_data import warn_of_cut_trials
from sb3_laplace.checks import check_integer, check_observation_space
from sb3_laplace.policies.laplace_lstm_policy import (
    LaplaceCnnLstmPolicy,
    LaplaceLstmPolicy,
    LaplaceMultiInputLstmPolicy,
)
from sb3_laplace.policies.types import SequenceRolloutBufferSamples
from sb3_laplace.posteriors import LatentPosterior
from sb3_laplace.vec_env import GymnasiumVecEnv

#: The largest power of ten that cost the bandit task less than a tenth of its learning speed
DEFAULT_KL_COEF = 1e-4

SelfLaplaceRecurrentPPO = TypeVar("SelfLaplaceRecurrentPPO", bound="LaplaceRecurrentPPO")


class LaplaceRecurrentPPO(SavedPPO):
    """Proximal Policy Optimization for recurrent policies with a posterior over the task latent.

    A drop-in for sb3-contrib's :class:`~sb3_contrib.RecurrentPPO`: between the LSTM and the heads stands a
    posterior (by default the Laplace approximation of the recurrent state), which is watched, sampled
    and, with ``kl_coef``, regularised. Minibatches are whole sequences. ``ent_coef``, ``kl_coef``, ``policy_coef``,
    ``target_coef`` and ``reward_coef`` may be functions of the progress remaining (from 1 to 0).

    With the identity latent, K = 0 samples and kl_coef = 0 it optimises what RecurrentPPO optimises, provided that the
    critic has an LSTM of its own or none. With ``shared_lstm=True`` the critic's gradient also flows into the LSTM,
    unless ``detach_critic=True`` keeps it out as RecurrentPPO does.

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
        for every step. "auto" (or "auto_1e-3", to start from 1e-3 in the place of 1e-4) learns it, so that the
        posterior moves as much as it claims to learn: in the linear read-out of the task where the environments report
        one by an attribute ``task``, in the latent elsewhere. In the former there is a coefficient for each part of a
        trial, and ``prior_std`` is the widest that the prior gets: it narrows where more is claimed than learned.
    :param kl_target: how much it is to move for what it claims, for kl_coef="auto"; 1 for a correct belief
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
        kl_coef: float | Schedule | str | None = None,
        kl_target: float = 1.0,
        sequence_length: int | None = None,
        policy_coef: float | Schedule = 1.0,
        target_coef: float | Schedule = 0.0,
        reward_coef: float | Schedule = 0.0,
        decode_window: int | str = 0,
        _init_setup_model: bool = True,
    ) -> None:
        # Before the parent builds the model, which reads them
        self.kl_coef = kl_coef
        self.kl_target = kl_target
        #: What kl_coef="auto" has come to, None before its first update
        self.kl_multiplier: list[float] | None = None
        #: What kl_coef="auto" has multiplied the prior's standard deviation by
        self.prior_narrowed = 1.0
        self.sequence_length = sequence_length
        self.policy_coef = policy_coef
        self.target_coef = target_coef
        self.reward_coef = reward_coef
        self.decode_window = decode_window
        # Keywords of the posterior that are settled when the model is built, or calibrated, and whether it has a
        # decoder of rewards. They are saved with it: a later version may have other defaults. policy_kwargs stay as
        # they were given, which SB3's load compares.
        self.posterior_settings: dict[str, Any] = {}
        self.has_reward_decoder = False
        # Loading leaves it to the file, in which agents of a time when it was always the identity have nothing
        self.settled_latent_dim = "auto" if _init_setup_model else None
        self.was_normalized: bool | None = None
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
            ent_coef=ent_coef,
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

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        env = maybe_make_env(env, verbose)
        if isinstance(env, VectorEnv):
            env = GymnasiumVecEnv(env)
        check_observation_space(env.observation_space)
        return SavedPPO._wrap_env(env, verbose, monitor_wrapper)

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
                "this is no LaplaceRecurrentPPO model or policy. LaplaceRecurrentPPO.from_recurrent_ppo converts a "
                "model of RecurrentPPO."
            )
        check_integer("n_steps", self.n_steps, minimum=1)
        if self.batch_size is not None:
            check_integer("batch_size", self.batch_size, minimum=1)
        check_integer("n_epochs", self.n_epochs, minimum=1)
        for term in self.loss_terms:
            term.check_arguments()
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

    def _setup_model(self) -> None:
        self.loss_terms = [term(self) for term in TERMS]
        sequence_length = self._check_arguments()
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        self.policy = self.policy_class(  # type: ignore[assignment]
            self.observation_space,
            self.action_space,
            self.lr_schedule,
            use_sde=self.use_sde,
            **self._complete_policy_kwargs(),
        ).to(self.device)
        self._settle_latent()
        if self.kl_coef is None:
            self.kl_coef = 0.0 if self.policy.latent_layer.is_point else DEFAULT_KL_COEF
        for term in self.loss_terms:
            term.check_policy()
        if not any(term.is_on for term in self.loss_terms):
            names = ", ".join(term.coefficient for term in self.loss_terms)
            raise ValueError(f"No term of the loss is on: {names} are all 0.")
        self._last_lstm_states = self.policy.initial_states(self.n_envs)
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

    @classmethod
    def from_recurrent_ppo(
        cls: type[SelfLaplaceRecurrentPPO],
        model_or_path: "RecurrentPPO | str | Path | io.BufferedIOBase",
        env: GymEnv | None = None,
        posterior_kwargs: dict[str, Any] | None = None,
        n_posterior_samples: int = 0,
        posterior: str | type[LatentPosterior] = "laplace",
        latent_dim: int | Literal["keep"] | None = "keep",
        kl_coef: float | Schedule | str = 0.0,
        device: th.device | str = "auto",
    ) -> SelfLaplaceRecurrentPPO:
        """Make a trained RecurrentPPO agent Bayesian, without training it again (paper, section 4).

        With the identity latent and no samples every action, value and log-probability is unchanged, and
        the posterior is there: ``model.policy.posterior(state)``. Training can go on from it. Weights that
        exist in both agents are kept; where the posterior or a latent_dim brings others they are
        initialised, and the log says which. A LaplaceRecurrentPPO model can be given another posterior the same
        way; it keeps what it has unless asked. Loading a zip runs the pickled code in it, as SB3 does.

        :param model_or_path: a sb3-contrib RecurrentPPO model, or its zip
        :param env: environment to go on with, of any number of copies; by default the model's own
        :param posterior_kwargs: keywords of the posterior. None keeps those of a model of ours whose posterior stays.
        :param n_posterior_samples: number of samples K to act on; 0 acts as before
        :param posterior: name or class of the posterior
        :param latent_dim: number of latent units, None for the identity. "keep" is what the model has: the identity for
            RecurrentPPO, the projection (and its weights) for a model of ours.
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
            posterior_kwargs=posterior_kwargs,
            n_posterior_samples=n_posterior_samples,
            posterior=posterior,
            latent_dim=latent_dim,
            kl_coef=kl_coef,
        )  # type: ignore[return-value]

    # -- update -----------------------------------------------------------------------------------------

    def train(self) -> None:
        """Update the policy with the rollout buffer."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        for term in self.loss_terms:
            term.begin_update()
        terms = [term for term in self.loss_terms if term.is_stored]
        parameters = list(self.policy.parameters())
        # Without PPO's own terms nothing holds the policy near the rollout's
        target_kl = self.target_kl if any(isinstance(term, PPOTerm) and term.is_on for term in terms) else None
        logs: dict[str, list[float]] = {}
        continue_training = True
        for epoch in range(self.n_epochs):
            for samples in self.rollout_buffer.get(self.batch_size):
                loss, numbers = loss_of_all_ranks(partial(self._loss, samples, terms), samples.mask)
                for name, value in numbers.items():
                    logs.setdefault(name, []).append(value)
                if target_kl is not None and numbers["approx_kl"] > 1.5 * target_kl:
                    continue_training = False
                    if self.verbose >= 1 and distributed.rank() == 0:
                        print(f"Early stopping at step {epoch} due to reaching max kl: {numbers['approx_kl']:.2f}")
                    break
                self._descend(loss, parameters)
            self._n_updates += 1
            if not continue_training:
                break

        for name, values in distributed.averaged(logs).items():
            # As RecurrentPPO: the last loss
            self.logger.record(f"train/{name}", values[-1] if name == "loss" else np.mean(values))
        buffer = self.rollout_buffer
        self.logger.record(
            "train/explained_variance", explained_variance(buffer.values.flatten(), buffer.returns.flatten())
        )
        if isinstance(getattr(self.policy, "log_std", None), th.Tensor):
            self.logger.record("train/std", th.exp(self.policy.log_std).mean().item())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        progress = self._current_progress_remaining
        self.logger.record("train/clip_range", self.clip_range(progress))  # type: ignore[operator]
        if self.clip_range_vf is not None:
            self.logger.record("train/clip_range_vf", self.clip_range_vf(progress))  # type: ignore[operator]

    def _descend(self, loss: th.Tensor, parameters: list[th.nn.Parameter]) -> None:
        """One step of the optimizer."""
        if not loss.requires_grad:
            # All coefficients are zero, as at the end of schedules
            return
        # What zero_grad() does, without its profiling
        for parameter in parameters:
            parameter.grad = None
        loss.backward()
        distributed.average_gradients(parameters)
        norm = th.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
        if not norm.isfinite():
            raise ValueError(
                f"The norm of the gradient is {norm.item()}. Lower learning_rate, or normalize observations and "
                "rewards (VecNormalize). The weights are still those before this step: model.save() works."
            )
        self.policy.optimizer.step()

    def _loss(self, samples: SequenceRolloutBufferSamples, terms: list[LossTerm]) -> tuple[th.Tensor, dict[str, float]]:
        """Loss of one minibatch, and what to log of it by name.

        :raises ValueError: if the loss is not finite
        """
        for term in terms:
            term.begin_minibatch(samples)
        masks = samples.columns.get("action_masks")
        masked: dict[str, Any] = {} if masks is None else {"action_masks": masks}
        evaluation = self.policy.evaluate_sequences(
            samples.observations,
            samples.actions,
            samples.lstm_states,
            samples.episode_starts,
            noise=samples.noise,
            memory=samples.memory,
            **masked,
        )
        return total_loss(terms, samples, evaluation)

    def learn(
        self: SelfLaplaceRecurrentPPO,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "LaplaceRecurrentPPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
        use_masking: bool | None = None,
    ) -> SelfLaplaceRecurrentPPO:
        """Train, as RecurrentPPO's ``learn`` does.

        :param total_timesteps: number of steps to train for, those of all environments (and processes) counted; the
            last rollout is played to its end
        :param callback: what is called at every step, one or a list of them
        :param log_interval: number of rollouts between two logs
        :param tb_log_name: name of the run in TensorBoard
        :param reset_num_timesteps: count steps from 0; False goes on where the last call has ended
        :param progress_bar: show a progress bar (needs tqdm and rich)
        :param use_masking: None masks actions where environments have a method ``action_masks()`` and their actions are
            discrete, True insists on masks, False ignores them. It is saved with the model.
        :return: the model itself
        :raises ValueError: if ``use_masking`` is something else, or True where there are no masks
        """
        self.set_masking(use_masking)
        if self.env is not None and distributed.rank() == 0:
            asked = self.sequence_length is not None
            longest = self.n_steps if asked else self.rollout_buffer.max_length
            warn_of_cut_trials(self.env, self.n_steps, longest)
        return super().learn(
            total_timesteps=total_timesteps,
            callback=callback,
            log_interval=log_interval,
            tb_log_name=tb_log_name,
            reset_num_timesteps=reset_num_timesteps,
            progress_bar=progress_bar,
        )
