"""``sb3-laplace train`` under torchrun: rank 0 has the folder of the run, the others write nothing."""

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from sb3_laplace.algorithm import distributed
from sb3_laplace.errors import InputError
from sb3_laplace.zoo.algorithms import OUR_ALGORITHMS


def check_ranks(options: argparse.Namespace) -> None:
    """Refuse what several processes cannot do together, and take from the options what only rank 0 does.

    :param options: those of ``train``
    :raises InputError: for a search for hyperparameters, or an algorithm that is not ours
    """
    n_ranks = distributed.size()
    if n_ranks == 1:
        return
    if options.optimize_hyperparameters:
        raise InputError(
            f"a search for hyperparameters trains every agent in one process, torchrun has started {n_ranks}: run the "
            "same command several times, on one --storage"
        )
    if options.algo not in OUR_ALGORITHMS:
        raise InputError(
            f"--algo {options.algo} trains in one process, torchrun has started {n_ranks}; "
            f"with several train {', '.join(OUR_ALGORITHMS)}"
        )
    if distributed.rank() > 0:
        options.track, options.progress, options.tensorboard_log = False, False, ""


@contextmanager
def rank_output() -> Iterator[None]:
    """What RL Zoo prints, on rank 0 only. Errors and warnings are every rank's."""
    if distributed.rank() == 0:
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield


def freq_of_rank(freq: int) -> int:
    """A number of steps of all ranks as steps of one, at least 1; what is not positive stands for none.

    :param freq: number of steps
    """
    return max(freq // distributed.size(), 1) if freq > 0 else freq
