"""How time per step grows with the sizes, and how much memory the rollout buffer takes."""

from dataclasses import replace

import torch as th

from benchmarks.common import Record, Selection, Sizes, against_target, print_table, verdict
from benchmarks.learning import LearnCase, time_learning

#: Memory of the buffer with kl_coef > 0, at this N, T and D
_TARGET_SIZE = (256, 50, 64)
_TARGET_MEGABYTES = 250.0


def measure_growth(sizes: Sizes, device: th.device, selection: Selection) -> list[Record]:
    """Microseconds per environment step of learn(), full covariance, against N, T, D and H.

    :param sizes: the axes and their values
    :param device: where to run
    :param selection: which of the axes
    """
    base = LearnCase(
        workload="bandit",
        candidate="full",
        env="batched",
        n_envs=sizes.growth_n_envs,
        n_steps=sizes.n_steps,
        hidden_size=sizes.hidden_size,
        latent_dim=sizes.latent_dim,
        learn_steps=sizes.learn_steps,
    )
    points = [
        (axis, value, replace(base, **{axis: value}))  # type: ignore[arg-type]
        for axis, values in sizes.growth.items()
        for value in values
        if selection.keeps("growth", axis)
    ]
    if not points:
        return []
    # The axes cross in one case, which is timed once
    cases = list(dict.fromkeys(case for _, _, case in points))
    measured = dict(zip(cases, time_learning("growth", cases, device, sizes.repeats), strict=True))
    return [
        {
            "axis": axis,
            "value": value,
            **{
                f"{part}us_per_step": 1e6 / measured[case][f"{part}steps_per_second"]
                for part in ("", "rollout_", "update_")
            },
            **measured[case],
        }
        for axis, value, case in points
    ]


def print_growth(records: list[Record]) -> None:
    """Print one table, axis by axis."""
    symbols = {"n_envs": "N", "n_steps": "T", "latent_dim": "D", "hidden_size": "H"}
    print_table(
        "growth: microseconds per environment step of learn(), full covariance",
        ("axis", *symbols.values(), "learn", "rollout", "update"),
        [
            (
                symbols[record["axis"]],
                *(str(record[name]) for name in symbols),
                *(f"{record[part + 'us_per_step']:.1f}" for part in ("", "rollout_", "update_")),
            )
            for record in records
        ],
    )


def measure_memory(sizes: Sizes, device: th.device, selection: Selection) -> list[Record]:
    """Memory of the rollout buffer after an update, full covariance, without and with the KL penalty.

    :param sizes: N, T and D
    :param device: where to run
    :param selection: whether to
    """
    if not selection.keeps("memory"):
        return []
    n_envs, n_steps, latent_dim = sizes.memory_n_envs, sizes.n_steps, sizes.latent_dim
    records = []
    for candidate in ("full", "full-kl"):
        case = LearnCase("bandit", candidate, "batched", n_envs, n_steps, sizes.hidden_size, latent_dim, 0)
        env = case.build_env()
        model = case.build(env, device)
        model.learn(case.steps_per_learn)
        env.close()
        nbytes = model.rollout_buffer.nbytes  # type: ignore[attr-defined]
        if candidate == "full":
            # Less than one D x D matrix for each step: none is stored
            target: float | None = 4e-6 * n_envs * n_steps * latent_dim**2
        else:
            target = _TARGET_MEGABYTES if (n_envs, n_steps, latent_dim) == _TARGET_SIZE else None
        records.append(
            {
                "candidate": candidate,
                "n_envs": n_envs,
                "n_steps": n_steps,
                "latent_dim": latent_dim,
                "megabytes": nbytes / 1e6,
                **against_target(nbytes / 1e6, target, at_most=True),
            }
        )
    return records


def print_memory(records: list[Record]) -> None:
    """Print the table."""
    print_table(
        "memory: megabytes of the rollout buffer (target without KL penalty: less than one D x D matrix per step)",
        ("posterior", "N", "T", "D", "MB", "target"),
        [
            (
                record["candidate"],
                *(str(record[name]) for name in ("n_envs", "n_steps", "latent_dim")),
                f"{record['megabytes']:.1f}",
                verdict(record, " MB"),
            )
            for record in records
        ],
    )
