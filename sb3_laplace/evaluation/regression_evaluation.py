"""What :func:`~sb3_laplace.evaluate_regression` returns: scores by number of observed pairs, tables, files."""

import csv
import json
import os
import zipfile
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

#: Central intervals whose coverage is measured, in percent
COVERAGE_LEVELS = (50, 90, 95)
#: Probabilities of the quantiles that bound the bands of example functions: the central 95% and 50%
BAND_QUANTILES = (0.025, 0.25, 0.75, 0.975)
#: What is measured of each function after n pairs
METRICS = (
    "mse",
    "mse_mixture",
    "nll_mixture",
    "nll_gaussian",
    *(f"coverage_{level}" for level in COVERAGE_LEVELS),
    "entropy",
    "kl",
)
_FORMAT = 1
_METHODS = {"agent": "agent", "limit": "bayesian_linear_regression"}


class ExampleFunctions(NamedTuple):
    """The first E functions in full, predicted at J inputs after each of M numbers of pairs, in the units of y.

    :param targets: the functions at the test inputs, shape (E, J)
    :param pairs: all observed (x, y), in order, shape (E, n, 2) for the largest n
    :param mean: means of the agent's predictive distributions, shape (E, M, J)
    :param bands: their quantiles, at ``BAND_QUANTILES``, shape (E, M, J, 4)
    :param limit_mean: means of the limit's, shape (E, M, J)
    :param limit_std: standard deviations of the limit's, at least 0.05, shape (E, M, J)
    """

    targets: np.ndarray
    pairs: np.ndarray
    mean: np.ndarray
    bands: np.ndarray
    limit_mean: np.ndarray
    limit_std: np.ndarray


@dataclass(frozen=True)
class RegressionEvaluation:
    """How well N functions are predicted at J test inputs, after each of M numbers of observed pairs.

    ``agent`` and ``limit`` hold, by name, an array (N, M) each: averages over the test inputs, in the units of
    y and in nats. The predictive distribution is the equal-weight mixture of the agent's Gaussians at K draws
    from its posterior.

    ================  ======================================================================================
    mse               squared error of the deterministic action: at the posterior's mean, clipped to the
                      range of y (what the environment's ``squared_error`` is)
    mse_mixture       squared error of the mean of the predictive distribution
    nll_mixture       negative log-density of y under the predictive distribution
    nll_gaussian      the same under the Gaussian of its mean and variance
    coverage_50       how often y lies between its quartiles; coverage_90, coverage_95: in the central 90% and
                      95%
    entropy           H(q_n), of the posterior at the step that shows the n-th pair and the trial's own query
    kl                KL(q_n || q_{n-1}) at that step, the prior for n = 0
    ================  ======================================================================================

    Entropy and KL are NaN for a point. The limit has neither, and as a single Gaussian only one MSE and NLL,
    under both names.

    :param n_observed: numbers of pairs, ascending, shape (M,)
    :param test_inputs: shape (J,)
    :param agent: the agent's scores
    :param limit: those of Bayesian linear regression, with standard deviations of at least 0.05
    :param examples: the first functions in full
    :param settings: what was evaluated: ``context``, ``seed``, ``n_posterior_samples``, ``posterior``,
        ``num_timesteps``
    """

    n_observed: np.ndarray
    test_inputs: np.ndarray
    agent: dict[str, np.ndarray]
    limit: dict[str, np.ndarray]
    examples: ExampleFunctions
    settings: dict[str, Any]

    @property
    def n_functions(self) -> int:
        """Number of functions N."""
        return len(self.agent["mse"])

    def summary(self) -> dict[str, np.ndarray]:
        """Averages over functions and their standard errors, the agent's rows and then the limit's.

        :return: ``context``, ``method`` ("agent" or "bayesian_linear_regression"), ``n_observed``, then each of
            ``METRICS`` and its standard error ``..._se``, NaN where there is none; each of shape (2 M,)
        """
        rows = len(self.n_observed)
        columns = {
            "context": np.repeat(self.settings["context"], 2 * rows),
            "method": np.repeat(list(_METHODS.values()), rows),
            "n_observed": np.tile(self.n_observed, 2),
        }
        nothing = np.full((self.n_functions, rows), np.nan)
        for name in METRICS:
            scores = np.concatenate([self.agent[name], self.limit.get(name, nothing)], axis=1)
            columns[name] = scores.mean(0)
            columns[f"{name}_se"] = scores.std(0, ddof=1) / np.sqrt(self.n_functions)
        return columns

    def table(self) -> str:
        """Averages over functions as text, the agent's and the limit's, a line for each number of pairs."""
        columns, rows = self.summary(), len(self.n_observed)

        def texts(name: str, pattern: str, limit: bool = False) -> list[str]:
            return [
                pattern % number if np.isfinite(number) else "-"
                for number in columns[name][rows if limit else 0 :][:rows]
            ]

        def coverages(limit: bool) -> list[str]:
            levels = (texts(f"coverage_{level}", "%.2f", limit) for level in COVERAGE_LEVELS)
            return [" ".join(level) for level in zip(*levels, strict=True)]

        heading = "coverage " + " ".join(map(str, COVERAGE_LEVELS))
        parts = {
            "pairs": texts("n_observed", "%d"),
            "mse": texts("mse", "%.4f"),
            "(se)": texts("mse_se", "(%.4f)"),
            "of mixture": texts("mse_mixture", "%.4f"),
            "limit": texts("mse", "%.4f", limit=True),
            "| nll mixture": texts("nll_mixture", "%.3f"),
            "gaussian": texts("nll_gaussian", "%.3f"),
            "limit ": texts("nll_mixture", "%.3f", limit=True),
            f"| {heading}": coverages(limit=False),
            "limit  ": coverages(limit=True),
            "| entropy": texts("entropy", "%.2f"),
            "kl": texts("kl", "%.3g"),
        }
        widths = {name: max(len(name.rstrip()), *map(len, column)) for name, column in parts.items()}
        lines = [
            "  ".join(text.rstrip().rjust(width) for text, width in zip(line, widths.values(), strict=True))
            for line in (parts, *zip(*parts.values(), strict=True))
        ]
        title = (
            f"{self.n_functions} functions, {len(self.test_inputs)} test inputs, context: {self.settings['context']}, "
            f"{self.settings['n_posterior_samples']} posterior samples; limit: Bayesian linear regression"
        )
        return "\n".join((title, *lines))

    def to_csv(self, path: str | os.PathLike) -> None:
        """Write :meth:`summary`, a line for each method and number of pairs; what does not exist is left empty.

        :param path: the file
        """
        columns = self.summary()
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            for row in zip(*columns.values(), strict=True):
                writer.writerow(_text(value) for value in row)

    def save(self, path: str | os.PathLike) -> None:
        """Write everything into one compressed npz file, which :meth:`load` and ``numpy.load`` read.

        :param path: the file
        """
        header = json.dumps({"format": _FORMAT, "settings": self.settings})
        arrays: dict[str, Any] = {"n_observed": self.n_observed, "test_inputs": self.test_inputs}
        for prefix, part in (("agent", self.agent), ("limit", self.limit), ("examples", self.examples._asdict())):
            arrays.update({f"{prefix}/{name}": array for name, array in part.items()})
        # Through a file object: numpy would add a suffix to a name
        with open(path, "wb") as file:
            np.savez_compressed(file, header=np.array(header), **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "RegressionEvaluation":
        """Read what :meth:`save` wrote. No code in the file is run.

        :param path: the file
        :raises ValueError: if it is not such a file
        """
        parts: dict[str, dict[str, np.ndarray]] = {"agent": {}, "limit": {}, "examples": {}}
        try:
            with np.load(path, allow_pickle=False) as file:
                header = json.loads(str(file["header"]))
                for key in file.files:
                    prefix, _, name = key.partition("/")
                    if name:
                        parts[prefix][name] = file[key]
                own = {name: file[name] for name in ("n_observed", "test_inputs")}
        except (KeyError, EOFError, ValueError, zipfile.BadZipFile) as error:
            message = f"{os.fspath(path)!r} is no evaluation written by RegressionEvaluation.save(): {error}"
            raise ValueError(message) from error
        if header.get("format") != _FORMAT:
            raise ValueError(f"{os.fspath(path)!r} has format {header.get('format')!r}, this version reads {_FORMAT}.")
        return cls(
            **own,
            agent=parts["agent"],
            limit=parts["limit"],
            examples=ExampleFunctions(**parts["examples"]),
            settings=header["settings"],
        )


def _text(value: Any) -> str:
    if isinstance(value, (float, np.floating)):
        return f"{value:.7g}" if np.isfinite(value) else ""
    return str(value)
