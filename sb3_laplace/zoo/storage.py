"""Where studies are kept: Optuna's journal files and databases, and what can be wrong with them."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from sqlalchemy.exc import SQLAlchemyError

from sb3_laplace.errors import InputError

# Seconds. Processes hold the lock for milliseconds; Optuna takes it from one that keeps it for 30.
_PATIENCE = 10.0
# What Optuna appends to the name of a journal file
_LOCK_SUFFIX = ".lock"


def journal_path(storage: str) -> Path | None:
    """Path of a journal file, None for a database.

    It is absolute: Optuna's lock is a symbolic link to it, and a dangling one is never taken from a process that
    has died.

    :param storage: what ``--storage`` was given: a file ending with ".log", or the URL of a database
    """
    return Path(storage).absolute() if storage.endswith(".log") else None


def check_not_locked(path: Path) -> None:
    """Wait until no process is writing to a study.

    :param path: path of the journal file
    :raises InputError: if one holds it for longer
    """
    lock = Path(f"{path}{_LOCK_SUFFIX}")
    holder, since = None, time.monotonic()
    while True:
        try:
            status = os.lstat(lock)
        except FileNotFoundError:
            return
        if (status.st_ino, status.st_mtime_ns) != holder:
            holder, since = (status.st_ino, status.st_mtime_ns), time.monotonic()
        if time.monotonic() - since > _PATIENCE:
            raise InputError(
                f"the study in {str(path)!r} is locked by another process: if none is running, delete {str(lock)!r}"
            )
        time.sleep(0.05)


@contextmanager
def study_errors(storage: str | None) -> Iterator[None]:
    """Say in one line what Optuna or the database has against a storage.

    :param storage: what ``--storage`` was given
    :raises InputError: if the storage cannot be used
    """
    try:
        yield
    except (ImportError, optuna.exceptions.OptunaError, SQLAlchemyError) as error:
        # "database is locked", say, is in the cause of Optuna's own
        raise InputError(f"--storage {storage!r}: {error.__cause__ or error}") from error
