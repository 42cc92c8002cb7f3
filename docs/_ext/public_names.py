"""What is public: what the ``__all__`` of these modules name."""

import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import sb3_laplace
import sb3_laplace.algorithm.losses
import sb3_laplace.cores
import sb3_laplace.posteriors
import sb3_laplace_envs
import sb3_laplace_envs.oracles

PUBLIC_MODULES: tuple[ModuleType, ...] = (
    sb3_laplace,
    sb3_laplace.cores,
    sb3_laplace.posteriors,
    sb3_laplace.algorithm.losses,
    sb3_laplace_envs,
    sb3_laplace_envs.oracles,
)


def public_names() -> Iterator[tuple[ModuleType, str]]:
    """Every public name and where it is, those that are imported when they are asked for among them."""
    for module in PUBLIC_MODULES:
        lazy = getattr(module, "_PLOTS", ())
        yield from ((module, name) for name in (*module.__all__, *lazy) if name != "__version__")


def public_classes() -> set[type]:
    """All public classes."""
    objects = (getattr(module, name) for module, name in public_names())
    return {one for one in objects if isinstance(one, type)}


def is_ours(obj: Any) -> bool:
    """Whether a class or a function is of this project."""
    return str(obj.__module__).startswith("sb3_laplace")


def signature_of(obj: Any) -> inspect.Signature:
    """The signature of a function or a constructor; of a single environment the one that its ``**kwargs`` stand for."""
    batched = getattr(obj, "vector_env_type", None)
    if batched is None:
        return inspect.signature(obj)
    signature = inspect.signature(batched)
    return signature.replace(parameters=[one for name, one in signature.parameters.items() if name != "num_envs"])
