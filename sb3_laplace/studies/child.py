"""``python -m sb3_laplace.studies.child DESCRIPTOR MODULE ARGUMENTS``: a module that runs while its parent lives.

The descriptor is the end of a pipe that the parent holds the other end of. When that closes, however the parent died,
the process ends at once, and with it the last holder of the run's lock: no orphan goes on writing into a folder that
another process has taken over. What training writes appears whole or not at all.
"""

import os
import runpy
import sys
import threading


def main() -> None:
    """Run the module that the command line names, as ``python -m`` does."""
    lifeline = int(sys.argv[1])
    threading.Thread(target=_end_with_parent, args=(lifeline,), daemon=True).start()
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def _end_with_parent(lifeline: int) -> None:
    # Nothing is ever written: this returns when the parent is gone
    os.read(lifeline, 1)
    os._exit(1)


if __name__ == "__main__":
    main()
