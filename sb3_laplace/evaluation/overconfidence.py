"""Does a posterior move as much as it claims to learn: the martingale test, in the task's own units where it can be."""

from sb3_laplace.evaluation.bootstrap import Estimate
from sb3_laplace.evaluation.findings import MIN_TRIALS, NOT_APPLICABLE, UNDECIDED, Finding, Trials

# A ratio above this (below its inverse) is not 1; an interval within the other is close to 1
_ABOVE_ONE = 1.1
_CLOSE_TO_ONE = 1.25
# A claim to learn no larger than this, in all of a trial and without units, is rounding
_NOTHING = 1e-9
# What each verdict on a read-out says
_IN_TASK = {
    "overconfident": "the belief moves more than its precision (or prior) allows.",
    "underconfident": "the belief moves less than it claims to learn.",
    "calibrated": "the belief moves as much as it claims to learn.",
    UNDECIDED: "more trials are needed to tell.",
}
# The verdicts on the latent that stand in their place, and what they say
_WHOLE = "the whole hidden state, which also holds what is no task, moves"
_IN_LATENT = {
    "overconfident": (
        "moves more than claimed",
        f"{_WHOLE} more than its precision claims: no evidence that the belief about a task is overconfident.",
    ),
    "underconfident": (
        "moves less than claimed",
        f"{_WHOLE} less than its precision claims: no evidence that the belief about a task is underconfident.",
    ),
    "calibrated": (
        "moves as claimed",
        f"{_WHOLE} as much as its precision claims: no evidence that the belief about a task is calibrated.",
    ),
    UNDECIDED: (UNDECIDED, "more trials are needed to tell whether the whole hidden state moves as claimed."),
}


def judge_overconfidence(data: Trials) -> Finding:
    """Does the posterior move as much as it claims to learn?

    Under a correct Bayesian update the posterior mean is a martingale, and
    ``E[(m_t - m_{t-1})(m_t - m_{t-1})^T] = E[Sigma_{t-1} - Sigma_t]``. That holds for any linear map of it, so with the
    read-out ``E[task | m_t] = B m_t + b``, ``d_t = |B (m_t - m_{t-1})|^2`` and
    ``e_t = tr B (Sigma_{t-1} - Sigma_t) B^T`` the ratio ``sum d_t / sum e_t``, over trials and a range of steps, is 1.
    (It does not depend on the units of the latent, but does on the prior: one too narrow makes every move too large.)

    A hidden state also holds what is no task, as the position of a robot: that part moves forever and is no belief.
    So the question is about the read-out (``space`` is "task") wherever the trace has one, see
    :class:`~sb3_laplace.evaluation.task_moves.TaskMoves`, of at least 30 trials
    (:data:`~sb3_laplace.evaluation.findings.MIN_TRIALS`). Elsewhere (``space`` is "latent") it is about all of the
    latent, in its own units: ``d_t = (m_t - m_{t-1})^T Lambda_{t-1} (m_t - m_{t-1}) / D`` and
    ``e_t = 1 - tr(Lambda_{t-1} Sigma_t) / D``. There the ratio says nothing about the belief about a task, and the
    verdicts are others.

    ``moved_to_claimed`` is the ratio over all steps but the first, ``_early``, ``_middle`` and ``_late`` over the
    thirds of a trial. Where these have other verdicts than the whole, the meaning says which.

    A right posterior has a ratio of 1 in any read-out. How far from 1 a wrong one is depends on the read-out: one whose
    prior is as wide where the means hardly vary as where they do claims too much there, and the less the ridge, the
    more the read-out makes of such directions. So compare ratios of the same read-out, and do not take a verdict on an
    uncalibrated prior for one on every part of the belief.

    - *overconfident* (in the latent *moves more than claimed*): the interval lies above 1.1
    - *underconfident* (*moves less than claimed*): it lies below 1 / 1.1
    - *calibrated* (*moves as claimed*): neither, and the interval is within a factor 1.25 of 1
    - *undecided*: none of these
    - *not applicable*: the posterior has no precision (a point), or claims to learn nothing (sum e_t is not
      positive: a constant variance)
    """
    question = "Is the posterior overconfident?"
    trace = data.trace
    if not data.enough:
        return data.no_verdict(question)
    if not data.exists(trace.kl_mean) or not data.exists(trace.expected_move):
        return Finding(question, NOT_APPLICABLE, {}, "The posterior has no precision.")
    kept = data.whole(trace.task_move) & data.whole(trace.task_expected_move)
    space = "task" if kept.sum() >= MIN_TRIALS else "latent"
    moved, claimed = data.get(trace.move), data.get(trace.expected_move)
    learns = data.average(data.sum(claimed, "all")).low > _NOTHING
    if space == "task":
        moved, claimed = data.get(trace.task_move), data.get(trace.task_expected_move)
        learns = learns and data.average(data.sum(claimed, "all")[kept]).low > _NOTHING
    else:
        kept[:] = True
    if not learns:
        meaning = "The precision does not grow: the posterior claims to learn nothing."
        return Finding(question, NOT_APPLICABLE, {}, meaning, space)
    numbers = {
        "moved_to_claimed" + ("" if part == "all" else f"_{part}"): data.ratio(
            data.sum(moved, part)[kept], data.sum(claimed, part)[kept]
        )
        for part in data.parts
    }
    verdict = _verdict(numbers["moved_to_claimed"])
    thirds = [_verdict(numbers[f"moved_to_claimed_{part}"]) for part in ("early", "middle", "late")]
    is_even = set(thirds) == {verdict}
    readout = trace.settings.get("task_readout")
    if space == "task":
        r2 = f" (R^2 {readout['r2']:.2f})" if isinstance(readout, dict) else ""
        shape = "" if is_even else f" Early {thirds[0]}, then {thirds[1]}, late {thirds[2]}."
        return Finding(question, verdict, numbers, f"In the task's read-out{r2} {_IN_TASK[verdict]}{shape}", space)
    reason = readout if isinstance(readout, str) else "the trace has no read-out of the task"
    if isinstance(readout, dict):
        reason = f"a verdict on a read-out of the task takes {MIN_TRIALS} trials, which the trace does not have"
    verdict, meaning = _IN_LATENT[verdict]
    return Finding(question, verdict, numbers, f"In the latent ({reason}) {meaning}", space)


def _verdict(ratio: Estimate) -> str:
    """What a ratio of moved to claimed says of a belief."""
    if ratio.low > _ABOVE_ONE:
        return "overconfident"
    if ratio.high < 1 / _ABOVE_ONE:
        return "underconfident"
    is_close = ratio.low > 1 / _CLOSE_TO_ONE and ratio.high < _CLOSE_TO_ONE
    return "calibrated" if is_close else UNDECIDED
