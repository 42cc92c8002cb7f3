"""Mixtures of SB3 action distributions: the policy averaged over draws of the latent."""

import math
from collections.abc import Callable
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    Distribution,
    MultiCategoricalDistribution,
)
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN
from torch import nn
from torch.distributions import Bernoulli, Categorical
from torch.distributions.utils import lazy_property

_NOT_FINITE = (
    "The policy's action logits are not finite: its weights or its inputs are not, or every action is masked (-inf)."
)
# What is finite in single precision, where actions may be, and no logit of a network
_LARGEST_LOGIT = 1e30


class LogSoftmaxCategorical(Categorical):
    """torch's categorical distribution of unnormalized logits, in a third of its operations and without its checks.

    The numbers are torch's, and so are the samples of a seed (tested); only sampling checks its input.

    :param logits: unnormalized log-probabilities, shape (..., n)
    """

    def __init__(self, logits: th.Tensor) -> None:
        self.logits = self._param = logits.log_softmax(-1)
        self._num_events = logits.shape[-1]
        # Past Categorical's own constructor, which normalizes by a logsumexp: five operations, and more backwards
        th.distributions.Distribution.__init__(self, logits.shape[:-1], validate_args=False)

    @lazy_property
    def probs(self) -> th.Tensor:
        return self.logits.exp()

    def sample(self, sample_shape: Any = th.Size()) -> th.Tensor:  # noqa: B008 (torch's default)
        """Draws, shape (*sample_shape, ...).

        :raises ValueError: if a logit is NaN, on a CPU. (A GPU would be waited for at every step; there the loss, which
            must be finite, tells.)
        """
        if self.logits.is_cpu and self.logits.isnan().any():
            raise ValueError(_NOT_FINITE)
        if sample_shape:
            return super().sample(sample_shape)
        # The race of exponentials by which multinomial draws too, after it has checked its arguments twice
        return (self.probs / th.empty_like(self.probs).exponential_()).argmax(-1)


class LogSoftmaxCategoricalDistribution(CategoricalDistribution):
    """SB3's categorical distribution on :class:`LogSoftmaxCategorical`.

    What torch's checks of every argument find is found elsewhere: sampling and :meth:`mode` refuse NaN, and the loss
    must be finite. A logit of -inf is an action that is never taken.
    """

    def proba_distribution(self, action_logits: th.Tensor) -> "LogSoftmaxCategoricalDistribution":
        self.distribution = LogSoftmaxCategorical(action_logits)
        return self

    def mode(self) -> th.Tensor:
        """The most probable actions, shape (N,).

        :raises ValueError: if a logit is NaN
        """
        if self.distribution.logits.isnan().any():
            raise ValueError(_NOT_FINITE)
        return super().mode()


class StateDependentLogStd(nn.Linear):
    """Log standard deviations of Gaussian actions, linear in the actor's last codes and clamped as SAC's.

    At first they are the same in every state: the weights are zero.

    :param latent_dim: number of codes
    :param log_std: log standard deviations to start from, shape (n_actions,)
    """

    def __init__(self, latent_dim: int, log_std: th.Tensor) -> None:
        # Drawing no random numbers: a seed is the same agent with and without it
        super().__init__(latent_dim, len(log_std), device="meta")
        self.weight = nn.Parameter(log_std.new_zeros(len(log_std), latent_dim))
        self.bias = nn.Parameter(log_std.detach().clone())

    def forward(self, latent_pi: th.Tensor) -> th.Tensor:
        """From codes (B, latent_dim) to log standard deviations (B, n_actions)."""
        return super().forward(latent_pi).clamp(LOG_STD_MIN, LOG_STD_MAX)


def check_state_dependent_std(action_space: spaces.Space, policy_kwargs: dict[str, Any]) -> None:
    """Check that ``state_dependent_std=True`` has a Gaussian to be about.

    :param action_space: action space
    :param policy_kwargs: keywords of SB3's policy
    :raises ValueError: naming what does not go with it
    """
    if not isinstance(action_space, spaces.Box):
        raise ValueError(f"state_dependent_std=True needs Gaussian actions, of a Box space, got {action_space}.")
    if policy_kwargs.get("use_sde", False):
        raise ValueError(
            "state_dependent_std=True does not go with use_sde=True (gSDE), whose noise has a scale of its own."
        )
    log_std_init = policy_kwargs.get("log_std_init", 0.0)
    if not LOG_STD_MIN < log_std_init < LOG_STD_MAX:
        raise ValueError(
            f"log_std_init must lie between {LOG_STD_MIN} and {LOG_STD_MAX}, the bounds of what is learned with "
            f"state_dependent_std=True, got {log_std_init!r}."
        )


def components_of(distribution: Distribution) -> Distribution:
    """The K * N components of a mixture, ordered (K, N), as one SB3 distribution; what is no mixture as it is."""
    return distribution.components if isinstance(distribution, MixtureDistribution) else distribution


class MixtureDistribution(Distribution):
    """Equal-weight mixture of K action distributions, one for each posterior sample.

    ``log p(a) = logsumexp_k log p_k(a) - log K``. The entropy of a mixture has no closed form; :meth:`entropy` is a
    lower bound. Categorical mixtures have one and do not come here: see :func:`mix`.

    :param components: the K * N component distributions, ordered (K, N), as one SB3 distribution
    :param n_components: number of components K
    """

    def __init__(self, components: Distribution, n_components: int) -> None:
        super().__init__()
        self.components = components
        self.n_components = n_components

    def proba_distribution_net(self, *args: object, **kwargs: object) -> nn.Module:
        raise NotImplementedError("A mixture has no network of its own: its components come from the policy's heads.")

    def proba_distribution(self, *args: object, **kwargs: object) -> "MixtureDistribution":
        raise NotImplementedError("Build a new MixtureDistribution from its components.")

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        """Log-probability of the actions under the mixture, shape (N,).

        :param actions: shape (N, ...)
        """
        repeated = actions.repeat(self.n_components, *[1] * (actions.dim() - 1))
        log_prob = self.components.log_prob(repeated).view(self.n_components, -1)
        return log_prob.logsumexp(0) - math.log(self.n_components)

    def entropy(self) -> th.Tensor | None:
        """Mean of the components' entropies, at most the mixture's and at least that less log K, shape (N,).

        It raises the entropy where it is added to a loss. ``-log_prob`` of actions that were taken does not: its mean
        is the mixture's entropy, but the mean of its gradient is zero. None where the components have none (SB3's
        squashed Gaussian).
        """
        entropy = self.components.entropy()
        return None if entropy is None else entropy.view(self.n_components, -1).mean(0)

    def sample(self) -> th.Tensor:
        """One action for each batch entry: a component at random, then a draw from it."""
        draws = self._by_component(self.components.sample())
        component = th.randint(self.n_components, (draws.shape[1],), device=draws.device)
        return self._select(draws, component)

    def mode(self) -> th.Tensor:
        """Of the components' modes, the one that is most probable under the mixture."""
        modes = self._by_component(self.components.mode())
        log_probs = th.stack([self.log_prob(mode) for mode in modes])
        return self._select(modes, log_probs.argmax(0))

    def _by_component(self, actions: th.Tensor) -> th.Tensor:
        return actions.view(self.n_components, -1, *actions.shape[1:])

    @staticmethod
    def _select(actions: th.Tensor, component: th.Tensor) -> th.Tensor:
        return actions[component, th.arange(actions.shape[1], device=actions.device)]

    def actions_from_params(self, *args: object, **kwargs: object) -> th.Tensor:
        raise NotImplementedError("Build a new MixtureDistribution from its components.")

    def log_prob_from_params(self, *args: object, **kwargs: object) -> tuple[th.Tensor, th.Tensor]:
        raise NotImplementedError("Build a new MixtureDistribution from its components.")


def masked(distribution: Distribution, action_masks: th.Tensor) -> Distribution:
    """The distribution given that the action is allowed.

    What sb3-contrib's ``MaskableDistribution`` is, with log-probabilities of -inf where that has -1e8: so actions that
    masks and a policy's own -inf leave none of are found.

    :param distribution: SB3's, of B discrete actions, whose object is used again. A Bernoulli's then has
        infinite logits, which :func:`mix` bounds.
    :param action_masks: True for what is allowed, in sb3-contrib's order, shape (B, n)
    :raises ValueError: if it is another distribution
    """
    if isinstance(distribution, CategoricalDistribution):
        return distribution.proba_distribution(distribution.distribution.logits.masked_fill(~action_masks, -th.inf))
    if isinstance(distribution, MultiCategoricalDistribution):
        logits = th.cat([choice.logits for choice in distribution.distribution], dim=1)
        return distribution.proba_distribution(logits.masked_fill(~action_masks, -th.inf))
    if isinstance(distribution, BernoulliDistribution):
        logits = distribution.distribution.logits
        allows_0, allows_1 = action_masks.view(*logits.shape, 2).unbind(-1)
        logits = logits.masked_fill(~allows_0, th.inf).masked_fill(~allows_1, -th.inf)
        return distribution.proba_distribution(logits)
    raise ValueError(f"action_masks need SB3's distributions of discrete actions, got a {type(distribution).__name__}.")


def mix(
    make_distribution: Callable[[th.Tensor], Distribution],
    latent_pi: th.Tensor,
    n_components: int,
    action_masks: th.Tensor | None = None,
) -> Distribution:
    """The policy as the mixture of its K action distributions.

    :param make_distribution: from the actor's last latent codes, shape (B, ...), to an SB3 distribution
    :param latent_pi: latent codes of all components, ordered (K, N), shape (K * N, ...)
    :param n_components: number of components K
    :param action_masks: True for what is allowed, the same for every component, shape (N, n); None if all is
    :return: SB3's own distribution where K = 1 or the actions are categorical (the mean of the
        probabilities is a categorical again, exactly), else a :class:`MixtureDistribution`. Masked logits, -inf, and
        inf of a Bernoulli's, are an action that is never taken: the other value of a choice has log-probability 0.
    """
    distribution = make_distribution(latent_pi)
    if action_masks is not None:
        distribution = masked(distribution, action_masks.repeat(n_components, 1))
    if isinstance(distribution, BernoulliDistribution):
        # Of a masked choice torch multiplies the logit, -inf or inf, by a probability of zero, which is NaN
        logits = distribution.distribution.logits.clamp(-_LARGEST_LOGIT, _LARGEST_LOGIT)
        distribution.distribution = Bernoulli(logits=logits)
    if n_components == 1:
        return distribution
    if isinstance(distribution, CategoricalDistribution):
        log_probs = distribution.distribution.logits.view(n_components, -1, distribution.action_dim)
        # Of an action that all components mask, -inf, the sum has no gradient
        log_probs = log_probs.clamp(min=th.finfo(log_probs.dtype).min)
        return distribution.proba_distribution(log_probs.logsumexp(0) - math.log(n_components))
    return MixtureDistribution(distribution, n_components)
