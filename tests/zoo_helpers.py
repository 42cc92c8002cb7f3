"""What the tests of the commands over RL Zoo's programs share."""

import re
from typing import Any

import pytest

from sb3_laplace.cli.main import main

BANDIT, PENDULUM = "sb3_laplace/DirichletBandit-v0", "PendulumNoVel-v1"
BANDIT_NAME = "sb3_laplace-DirichletBandit-v0"


def train(*arguments: Any, algo: str = "laplace_ppo_lstm", env: str = BANDIT, command: str = "train") -> int:
    return main([command, "--algo", algo, "--env", env, "--device", "cpu", *map(str, arguments)])


def one_line(capsys: pytest.CaptureFixture[str], expected: str = "") -> str:
    """What a command that has failed wrote to stderr, which matches a regular expression."""
    lines = [line for line in capsys.readouterr().err.splitlines() if "Warning" not in line and line.strip()]
    assert len(lines) == 1, lines
    assert lines[0].startswith("sb3-laplace: error: ")
    assert re.search(expected, lines[0]), lines[0]
    return lines[0]
