"""What every command does with its options."""

import argparse
from typing import NoReturn

import torch as th
from stable_baselines3.common.utils import get_device

from sb3_laplace.errors import InputError

#: The largest seed that NumPy takes
MAX_SEED = 2**32 - 1


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are :class:`InputError`, without a page of usage before them."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} ({self.prog} --help says what there is)")


def check_device(device: str) -> None:
    """Compute something on a device.

    :param device: what ``--device`` was given
    :raises InputError: if there is no such device here
    """
    try:
        th.zeros(1, device=get_device(device)).item()
    except (AssertionError, RuntimeError) as error:
        # torch lists all that it knows on the same line, or asserts that it was compiled with it
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"--device {device}: {reason}") from error
