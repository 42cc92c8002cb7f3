"""What every calibration asks of a model, and how it plays held-out trials."""

import contextlib
from collections.abc import Iterator

from sb3_laplace.algorithm.laplace_recurrent_ppo import LaplaceRecurrentPPO
from sb3_laplace.evaluation.player import Played, Player, forked_random
from sb3_laplace.posteriors import LaplacePosterior


def laplace_layer(model: LaplaceRecurrentPPO) -> LaplacePosterior:
    """The model's latent layer, one whose prior can be set to good purpose.

    :param model: the model
    :raises ValueError: if its posterior is no Laplace posterior, or one on which the prior has no effect
    """
    layer = model.policy.latent_layer
    if not isinstance(layer, LaplacePosterior):
        raise ValueError(f"model must have a Laplace posterior, got {type(layer).__name__}.")
    if layer.factorization == "stationary" and layer.damping is not None:
        raise ValueError(
            "prior_std has no effect on the model's posterior: it is stationary with an explicit "
            f"damping = {layer.damping!r}, which takes the place of the prior's precision. Calibrate a model whose "
            "damping is None."
        )
    return layer


@contextlib.contextmanager
def held_out_trials(player: Player, seed: int) -> Iterator[Iterator[Played]]:
    """The steps of all trials of a player; torch's random number generators are put back afterwards.

    :param player: the player
    :param seed: of the environments and of torch
    """
    with forked_random(player.model.device, seed), contextlib.closing(player.play(seed)) as steps:
        yield steps
