"""What the command line reports in one line, and what it leaves to a traceback."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch as th
from gymnasium.error import Error as GymnasiumError

# Packages that raise an exception to tell their caller what was wrong with its arguments
_CHECKING = ("gymnasium", "rl_zoo3", "sb3_contrib", "sb3_laplace", "sb3_laplace_envs", "stable_baselines3", "torch")
# About files, memory, what is installed and what was asked for, wherever they come from
_ALWAYS = (GymnasiumError, MemoryError, ModuleNotFoundError, OSError, th.cuda.OutOfMemoryError)
# About arguments if a statement of a checking package raised them, else (a shape that does not fit, say) a bug
_ON_PURPOSE = (AssertionError, ImportError, TypeError, ValueError)


class InputError(Exception):
    """Something the user passed in cannot be used; the message is all that is shown."""


@contextmanager
def input_errors() -> Iterator[None]:
    """Turn errors that are the user's into one line, and let bugs pass as they are.

    :raises InputError: for an exception that :func:`is_users` knows
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if is_users(error):
            raise InputError(describe(error)) from error
        raise


def is_users(error: Exception) -> bool:
    """Whether an exception is about what the user passed in.

    That is so for errors of files, memory, missing packages and Gymnasium. Value, type and import errors and
    assertions count only where the statement that raised them is a ``raise`` (or an ``assert``, though none of our
    own) in a package that checks arguments that way.
    """
    if isinstance(error, _ALWAYS):
        return True
    if not isinstance(error, _ON_PURPOSE) or error.__traceback__ is None:
        return False
    package = _package(error)
    # Where users are answered with an exception, assertions guard against our own mistakes
    statements = ("raise",) if package == "sb3_laplace" else ("raise", "assert")
    return package in _CHECKING and _statement(error).startswith(statements)


def is_bug(error: Exception) -> bool:
    """Whether an exception is a bug whatever the user passed in: a name that is missing in our own code.

    This is for the places where anything else may be the user's: configurations that are evaluated, files that are
    unpickled.
    """
    return isinstance(error, NameError) and _package(error) == "sb3_laplace"


def passed_through(error: Exception, function: str) -> bool:
    """Whether an exception came out of a call of a function of this name."""
    return any(frame.name == function for frame in traceback.extract_tb(error.__traceback__))


def describe(error: Exception) -> str:
    """The message of an exception, with its type where the message alone says nothing."""
    name, message = type(error).__name__, str(error)
    if not message:
        return f"{name}: {_statement(error)}"
    return f"{name}: {message}" if isinstance(error, (ArithmeticError, LookupError)) else message


def _package(error: Exception) -> str:
    """The package whose code raised an exception; "" if it was not raised."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return str(frames[-1].f_globals.get("__name__")).split(".")[0] if frames else ""


def _statement(error: Exception) -> str:
    """The line of source that raised an exception, the first if there are several; "" if it is not known."""
    frames = traceback.extract_tb(error.__traceback__)
    return (frames[-1].line or "") if frames else ""
