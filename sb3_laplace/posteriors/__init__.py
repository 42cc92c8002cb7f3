"""The latent layer: from recurrent states to Gaussian posteriors over the task latent, one class per posterior."""

from typing import Any, Literal

from sb3_laplace.posteriors.base import (
    HiddenStatePosterior,
    LatentPosterior,
    PosteriorState,
    PosteriorStep,
    Replay,
    SequenceInputs,
    StepInputs,
)
from sb3_laplace.posteriors.laplace import LaplacePosterior
from sb3_laplace.posteriors.point import ConstantVariancePosterior, PointPosterior
from sb3_laplace.posteriors.variational import VariationalPosterior

__all__ = [
    "POSTERIORS",
    "ConstantVariancePosterior",
    "HiddenStatePosterior",
    "LaplacePosterior",
    "LatentPosterior",
    "PointPosterior",
    "PosteriorState",
    "PosteriorStep",
    "Replay",
    "SequenceInputs",
    "StepInputs",
    "VariationalPosterior",
    "make_posterior",
]

#: Names that ``policy_kwargs=dict(posterior=...)`` takes
POSTERIORS: dict[str, type[LatentPosterior]] = {
    "laplace": LaplacePosterior,
    "point": PointPosterior,
    "constant_variance": ConstantVariancePosterior,
    "variational": VariationalPosterior,
}
# The paper's number of latent units
_MAX_LATENT_DIM = 64


def make_posterior(
    posterior: str | type[LatentPosterior],
    hidden_size: int,
    input_size: int,
    latent_dim: int | Literal["auto"] | None,
    posterior_kwargs: dict[str, Any],
) -> LatentPosterior:
    """Build the latent layer that ``policy_kwargs`` ask for.

    :param posterior: a name, or a subclass of :class:`~sb3_laplace.LatentPosterior`
    :param hidden_size: number of hidden units H
    :param input_size: number of inputs F that the core's Jacobian takes
    :param latent_dim: number of latent units D, None for the identity; "auto" is at most 64, and the identity for a
        point
    :param posterior_kwargs: further keyword arguments of the class
    :raises ValueError: if the name is unknown or an argument is out of range
    :raises TypeError: if the class takes no such keyword
    """
    posterior_class = POSTERIORS.get(posterior) if isinstance(posterior, str) else posterior
    if not (isinstance(posterior_class, type) and issubclass(posterior_class, LatentPosterior)):
        raise ValueError(f"posterior must be one of {list(POSTERIORS)} or a LatentPosterior class, got {posterior!r}.")
    if latent_dim == "auto":
        latent_dim = None if posterior_class.is_point else min(_MAX_LATENT_DIM, hidden_size)
    try:
        return posterior_class(hidden_size, input_size, latent_dim, **posterior_kwargs)
    except TypeError as error:
        message = f"posterior_kwargs={posterior_kwargs!r} do not fit {posterior_class.__name__}: {error}"
        raise TypeError(message) from error
