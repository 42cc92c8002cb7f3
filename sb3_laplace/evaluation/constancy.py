"""A posterior whose precision is meant to grow and hardly does: it is a constant, whatever its entropy seems to do."""

import math

#: Least growth of the precision within a trial, relative and averaged (geometrically) over units, that is one
MIN_GROWTH = 0.01


def constancy(entropy_fall: float, latent_dim: int) -> str | None:
    """What to say of a Laplace posterior that is nearly constant, None of one that is not.

    ``2 / D`` times what the entropy loses from the first step to the last is the logarithm of the factor by which the
    precision grows, averaged over its D axes. It is nearly constant where that factor is below 1.01.

    :param entropy_fall: entropy after a trial's first observation less that at its end, averaged over trials, in nats
    :param latent_dim: number of latent units D
    """
    growth = math.expm1(2.0 * entropy_fall / latent_dim)
    if not growth < MIN_GROWTH:
        return None
    return (
        f"This posterior is nearly constant, its precision grows by {100 * max(growth, 0.0):.2g}% within a trial: "
        "it can learn with a wider prior_std, a projected latent (latent_dim) or a smaller noise_std."
    )
