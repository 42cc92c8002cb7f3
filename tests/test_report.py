"""The report and its figures: one file that needs no other, and curves that show what they should."""

import base64
import dataclasses
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from sb3_laplace import BeliefEvaluation, LaplaceRecurrentPPO, evaluate_belief, make_vec_env
from sb3_laplace.evaluation.bootstrap import Bootstrap
from sb3_laplace.evaluation.diagnostics import diagnose
from sb3_laplace.evaluation.traces import PosteriorTrace, posterior_trace
from sb3_laplace.plots import traces as plots
from sb3_laplace.plots.report import write_report


@pytest.fixture(scope="module")
def traces() -> dict[str, PosteriorTrace]:
    env = make_vec_env("sb3_laplace/DirichletBandit-v0", n_envs=20, seed=0, env_kwargs={"trial_length": 8})
    traces = {}
    for name, policy_kwargs in (("<b>laplace</b>", {"latent_dim": 3}), ("point", {"posterior": "point"})):
        policy_kwargs = {"lstm_hidden_size": 6, "net_arch": [8], **policy_kwargs}
        model = LaplaceRecurrentPPO("LaplaceLstmPolicy", env, policy_kwargs=policy_kwargs, seed=0, device="cpu")
        traces[name] = posterior_trace(model, env, 40)
    return traces


class Tags(HTMLParser):
    """Every start tag of a page with its attributes; and whether tags are closed in order."""

    VOID = frozenset({"meta", "img", "br", "link", "input"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def written(traces: dict[str, PosteriorTrace], path: Path) -> Tags:
    write_report(path, traces, {name: diagnose(trace) for name, trace in traces.items()})
    return Tags(path.read_text(encoding="utf-8"))


def test_one_file_that_needs_no_other(traces: dict[str, PosteriorTrace], tmp_path: Path) -> None:
    page = written(traces, tmp_path / "report.html")
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe"}
    sources = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    # Nine figures of all agents, and the examples of each
    assert len(sources) == 11
    for source in sources:
        assert source is not None
        assert source.startswith("data:image/svg+xml;base64,")
        svg = base64.b64decode(source.partition(",")[2]).decode()
        # Nothing is loaded from elsewhere by the figures either
        assert not re.search(r'(href|src)="(?!#|data:)', svg)
    assert "url(http" not in (tmp_path / "report.html").read_text()
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.tags
    assert all(attrs.get("alt") for tag, attrs in page.tags if tag == "img")


def test_text(traces: dict[str, PosteriorTrace], tmp_path: Path) -> None:
    page = written(traces, tmp_path / "report.html")
    # The name is text, not a tag
    assert page.text.count("<b>laplace</b>") > 3
    assert "40 trials of point" in page.text
    for finding in diagnose(traces["point"]).findings.values():
        assert finding.question in page.text
        assert finding.meaning in page.text
    for setting in ("PointPosterior", "LSTM, 1 x 6", "trial_length=8", "sb3_laplace/DirichletBandit-v0"):
        assert setting in page.text


def test_a_point_alone_has_fewer_figures(traces: dict[str, PosteriorTrace], tmp_path: Path) -> None:
    page = written({"point": traces["point"]}, tmp_path / "report.html")
    titles = re.findall(r"([A-Z][^.]*)\.", " ".join(str(attrs["alt"]) for tag, attrs in page.tags if tag == "img"))
    assert "Cumulative regret, or reward" in titles
    assert "Entropy" not in titles
    assert "Moved and claimed" not in titles
    assert "Moved over claimed, by part of a trial" not in titles


def test_the_table_of_a_calibration(traces: dict[str, PosteriorTrace], tmp_path: Path) -> None:
    diagnoses = {name: diagnose(trace) for name, trace in traces.items()}
    assert "Calibration" not in written(traces, tmp_path / "report.html").text.replace("Calibration of the policy", "")
    write_report(tmp_path / "report.html", traces, diagnoses, calibration="Set: noise < 3\n  all  1 < 2")
    page = Tags((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "Set: noise < 3\n  all  1 < 2" in page.text
    assert "read the thirds" in page.text


def with_read_out(trace: PosteriorTrace) -> PosteriorTrace:
    rng = np.random.default_rng(0)
    moves = {name: rng.uniform(0.01, 0.1, trace.reward.shape) for name in ("task_move", "task_expected_move")}
    return dataclasses.replace(trace, **moves)


def test_moves_are_of_the_task_where_there_is_a_read_out(traces: dict[str, PosteriorTrace]) -> None:
    trace = with_read_out(traces["<b>laplace</b>"])
    # A point claims nothing, and is not drawn
    for label, shown in (("one: claimed", {"one": trace, "point": traces["point"]}), ("claimed", {"one": trace})):
        figure = plots.moves(shown)
        np.testing.assert_allclose(line(figure, label)[1], np.nanmean(trace.task_expected_move[:, 1:], axis=0))
        assert figure is not None
        assert figure.axes[0].get_ylabel() == "squared move of the task / its variance"
    forgotten = dataclasses.replace(trace, task_move=trace.task_move.copy())
    forgotten.task_move[1:] = np.nan
    np.testing.assert_allclose(line(plots.moves({"one": forgotten}), "moved")[1], trace.task_move[0, 1:])
    latent = dataclasses.replace(trace, task_move=None, task_expected_move=None)
    figure = plots.moves({"one": trace, "two": latent})
    np.testing.assert_allclose(line(figure, "one: moved")[1], trace.move[:, 1:].mean(0), rtol=1e-6)


def test_ratios_by_part(traces: dict[str, PosteriorTrace]) -> None:
    trace = with_read_out(traces["<b>laplace</b>"])
    diagnoses = {"read": diagnose(trace), "whole": diagnose(dataclasses.replace(trace, task_expected_move=None))}
    diagnoses["point"] = diagnose(traces["point"])
    figure = plots.ratios(diagnoses)
    assert figure is not None
    containers = figure.axes[0].containers
    assert [one.get_label() for one in containers] == ["read, in the task's read-out", "whole, in the latent"]
    for container, name in zip(containers, diagnoses, strict=False):
        expected = [number.value for number in diagnoses[name].findings["overconfidence"].numbers.values()]
        np.testing.assert_allclose(container[0].get_ydata(), expected)
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["all", "early", "middle", "late"]
    assert plots.ratios({"point": diagnoses["point"]}) is None


def test_beliefs_beside_the_exact_one(traces: dict[str, PosteriorTrace], tmp_path: Path) -> None:
    beliefs = {"<b>laplace</b>": small_belief(), "point": small_belief()}
    diagnoses = {name: diagnose(trace) for name, trace in traces.items()}
    write_report(tmp_path / "report.html", traces, diagnoses, beliefs)
    page = Tags((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert any(str(attrs.get("alt")).startswith("Belief about the task") for _, attrs in page.tags)
    for belief in beliefs.values():
        assert belief.table() in page.text
    assert [tag for tag, _ in page.tags].count("h3") == 2
    assert "exact belief" not in written(traces, tmp_path / "report.html").text


def small_belief() -> BeliefEvaluation:
    env = make_vec_env("sb3_laplace/DirichletBandit-v0", n_envs=1, seed=0, env_kwargs={"trial_length": 4})
    policy_kwargs = {"lstm_hidden_size": 6, "net_arch": [8], "latent_dim": 3}
    model = LaplaceRecurrentPPO("LaplaceLstmPolicy", env, policy_kwargs=policy_kwargs, seed=0, device="cpu")
    return evaluate_belief(
        model,
        "sb3_laplace/DirichletBandit-v0",
        n_trials=20,
        env_kwargs={"trial_length": 4},
        network_steps=1,
        bootstrap=Bootstrap(n_resamples=20),
    )


def test_without_matplotlib(traces: dict[str, PosteriorTrace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sb3_laplace.plots.traces", None)
    monkeypatch.delattr("sb3_laplace.plots.traces", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'sb3-laplace\[plots\]'"):
        write_report(tmp_path / "report.html", {}, {})


def line(figure: Figure | None, label: str) -> tuple[np.ndarray, np.ndarray]:
    assert figure is not None
    (found,) = [line for line in figure.axes[0].lines if line.get_label() == label]
    return np.asarray(found.get_xdata()), np.asarray(found.get_ydata())


def test_curves(traces: dict[str, PosteriorTrace]) -> None:
    trace = traces["<b>laplace</b>"]
    steps, regret = line(plots.performance(traces), "<b>laplace</b>")
    np.testing.assert_array_equal(steps, np.arange(1, 9))
    np.testing.assert_allclose(regret, trace.metrics["regret"].cumsum(1).mean(0), rtol=1e-5)
    figure = plots.kl_mean(traces)
    _, kl = line(figure, "<b>laplace</b>")
    np.testing.assert_allclose(kl, trace.kl_mean.mean(0), rtol=1e-5)
    assert figure is not None
    assert figure.axes[0].get_yscale() == "log"
    steps, moved = line(plots.moves({"one": trace}), "moved")
    np.testing.assert_array_equal(steps, np.arange(2, 9))
    np.testing.assert_allclose(moved, trace.move[:, 1:].mean(0), rtol=1e-5)
    assert plots.entropy({"point": traces["point"]}) is None


def test_long_and_ending_trials() -> None:
    values = np.tile(np.arange(1200.0), (40, 1))
    values[1:, 900:] = np.nan
    steps, mean, low, _ = plots.mean_and_spread(values)
    # Three steps a point; the last 300 steps are those of one trial in 40
    assert len(steps) == 400
    assert steps[:2].tolist() == [2.0, 5.0]
    np.testing.assert_allclose(mean[:300], np.arange(300) * 3 + 1)
    np.testing.assert_allclose(low[:300], mean[:300])
    assert np.isnan(mean[300:]).all()


def test_reliability_is_that_of_the_bins() -> None:
    trace = make_calibrated()
    figure = plots.calibration({"agent": trace})
    assert figure is not None
    (points,) = [c for c in figure.axes[0].collections if c.get_label() == "agent"]
    x, y = np.asarray(points.get_offsets()).T
    np.testing.assert_allclose(x, [0.35, 0.75])
    np.testing.assert_allclose(y, [0.25, 0.5])


def make_calibrated() -> PosteriorTrace:
    """Half of the steps with a confidence of 0.35, right one time in four, half 0.75, right every other time."""
    confidence = np.tile([0.35, 0.75], (40, 5))
    confidence = np.hstack((confidence[:, :1], confidence))
    right = np.where(confidence == 0.35, np.arange(40)[:, None] % 4 == 0, np.arange(40)[:, None] % 2 == 0)
    names = ("entropy", "kl_mean", "kl_covariance", "mean_step", "expected_move", "jacobian_norm", "action_entropy")
    return PosteriorTrace(
        lengths=np.full(40, 11),
        complete=np.ones(40, dtype=bool),
        latent_dim=2,
        confidence=confidence,
        metrics={"regret": np.where(right, 0.0, 0.5)},
        **{name: np.full((40, 11), np.nan) for name in (*names, "value", "target_quantile", "reward")},
    )


def test_ellipses_are_one_standard_deviation(traces: dict[str, PosteriorTrace]) -> None:
    _, (axes,) = plots.new_figure()
    rotation = np.array([[0.6, -0.8], [0.8, 0.6]])
    plots._draw_ellipse(axes, np.array([1.0, 2.0]), rotation @ np.diag([9.0, 4.0]) @ rotation.T, (0, 0, 0, 1))
    (ellipse,) = axes.patches
    # Points at one standard deviation along each axis are on the outline
    for point in (np.array([1.0, 2.0]) + 3 * rotation[:, 0], np.array([1.0, 2.0]) - 2 * rotation[:, 1]):
        on_circle = ellipse.get_patch_transform().inverted().transform(point)
        assert np.linalg.norm(on_circle) == pytest.approx(1.0)
    # In an agent's figure the smallest: the posterior's spread in the plane, not in all dimensions
    trace = traces["<b>laplace</b>"]
    assert trace.examples is not None
    figure_of_examples = plots.example_trials(trace)
    assert figure_of_examples is not None
    panels = [axes for axes in figure_of_examples.axes if axes.get_title()]
    assert len(panels) == len(trace.examples.trials) == 6
    widths = [patch.width for patch in panels[0].patches]
    assert len(widths) == len(trace.examples.steps)
    assert max(widths) <= 2 * np.sqrt(trace.examples.covariances[0, 0].diagonal().max()) * 1.0001


def test_pictures_do_not_touch_pyplot() -> None:
    before = "matplotlib.pyplot" in sys.modules
    image = plots.to_image(plots.within_trial({"entropy (nats)": np.arange(5.0), "KL, mean part": np.zeros(5)}))
    assert image.shape == (300, 800, 3)
    assert image.dtype == np.uint8
    assert 0 < (image < 128).mean() < 0.5
    assert ("matplotlib.pyplot" in sys.modules) == before
