"""One page of pictures of a surrogate's check: what its simulator has in black and grey, what it makes in colour."""

import textwrap
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator
from torch import Tensor

from sbi_physics.diagnostics.classifier import ClassifierTest
from sbi_physics.diagnostics.correlations import CorrelationDifference
from sbi_physics.diagnostics.manifold import NAMES
from sbi_physics.diagnostics.response import ResponseComparison
from sbi_physics.diagnostics.scores import Scored, operating_curve
from sbi_physics.report.shower_figures import draw_mean_showers
from sbi_physics.report.style import COLOURS
from sbi_physics.surrogate.surrogate_report import ComparedEvents, SurrogateReport, with_error

__all__ = ["surrogate_check"]

_WIDTH = 10.0
_TOP_ROW, _MIDDLE_ROW, _FEATURE_ROW = 2.85, 2.75, 2.2
_FEATURES_ACROSS = 4
_FEATURE_ROWS = {True: 2, False: 4}
_BINS = 40
_NAMED_CORRELATIONS = 10
_SMALL, _USUAL = 7.5, 8.5
_SIGMAS = 3.0
_REAL, _MADE, _WRONG = "0.25", COLOURS[0], COLOURS[1]

# What the rows of the table belong to, by how they begin.
_TESTS = {
    "low-level": "low-level classifier",
    "high-level": "high-level classifier",
    "Fréchet": "Fréchet physics distance",
    "kernel": "kernel physics distance",
    "precision": "modes",
    "recall": "modes",
    "density": "modes",
    "coverage": "modes",
    "response": "response",
    "resolution": "response",
    "correlation": "correlations",
    "separation": "histograms",
    "divergence": "histograms",
}


class _Page(NamedTuple):
    """A figure on which places are given in inches from its upper left corner."""

    figure: Figure
    width: float
    height: float

    def axes(self, left: float, top: float, width: float, height: float, **options: Any) -> Axes:
        place = (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        axis: Axes = self.figure.add_axes(place, **options)
        axis.tick_params(labelsize=_SMALL)
        return axis

    def with_ratio(self, left: float, top: float, width: float, height: float) -> tuple[Axes, Axes]:
        """A panel, and a lower one below it that shares its abscissa."""
        upper = self.axes(left, top, width, 0.68 * height)
        lower = self.axes(left, top + 0.72 * height, width, 0.28 * height, sharex=upper)
        upper.tick_params(labelbottom=False)
        return upper, lower


def surrogate_check(report: SurrogateReport) -> Figure:
    """Draw the page: classifiers, table, response, correlations, the features that differ most, and mean showers.

    Args:
        report: of `Surrogate.check` or `check_surrogate`.
    """
    showers = report.compared.geometry is not None
    lines = textwrap.wrap(report.verdict, int(_WIDTH * 12.5))
    middle = [part for part in (report.response, report.correlations) if part is not None]
    features = min(len(report.compared.names), _FEATURES_ACROSS * _FEATURE_ROWS[showers])
    feature_rows = -(-features // _FEATURES_ACROSS)
    tops = [0.4 + 0.17 * len(lines)]
    for height in (_TOP_ROW, _MIDDLE_ROW if middle else 0.0, feature_rows * _FEATURE_ROW, 4.2 if showers else 0.0):
        tops.append(tops[-1] + height)
    page = _Page(Figure(figsize=(_WIDTH, tops[-1])), _WIDTH, tops[-1])
    page.figure.suptitle("\n".join(lines), x=0.35 / _WIDTH, y=1 - 0.15 / page.height, ha="left", va="top", fontsize=9.5)
    _classifier(page.axes(0.6, tops[0] + 0.15, 2.1, 2.1), "whole events", report.low_level, report.low_level_floor)
    _classifier(page.axes(3.3, tops[0] + 0.15, 2.1, 2.1), "features", report.high_level, report.high_level_floor)
    _table(page.axes(5.75, tops[0] - 0.1, 4.0, _TOP_ROW - 0.2), report)
    if report.response is not None:
        _responses(page, tops[1], report.response, report.compared)
    if report.correlations is not None:
        _correlations(page, 7.3 if report.response is not None else 0.9, tops[1], report.correlations)
    for k, i in enumerate(report.worst_features[:features]):
        row, column = divmod(k, _FEATURES_ACROSS)
        panels = page.with_ratio(0.6 + 2.38 * column, tops[2] + 0.2 + _FEATURE_ROW * row, 1.86, 1.55)
        _feature(panels, report, i)
    if showers:
        draw_mean_showers(page.figure, report.compared, (0.25, tops[3], _WIDTH - 0.45, 4.1))
    return page.figure


def _classifier(axis: Axes, what: str, test: ClassifierTest, floor: ClassifierTest) -> None:
    """The share of real events against that of generated ones above a score."""
    axis.plot([0, 1], [0, 1], color="0.8", linewidth=0.8)
    for one, colour, style, name in ((floor, _REAL, "--", "simulator"), (test, _MADE, "-", "surrogate")):
        generated, real = operating_curve(
            Scored(one.real_scores, one.real_weights), Scored(one.generated_scores, one.generated_weights)
        )
        axis.plot(
            generated, real, style, color=colour, linewidth=1.3, label=f"{name}: {with_error(one.auc, one.error)}"
        )
    axis.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axis.set_xlabel("generated events above a score", fontsize=_USUAL)
    axis.set_ylabel("real events above it", fontsize=_USUAL)
    axis.set_title(f"classifier of {what}", fontsize=_USUAL + 0.5, loc="left")
    axis.set_xticks([0, 0.5, 1])
    axis.set_yticks([0, 0.5, 1])
    axis.legend(title="AUC", frameon=False, fontsize=_SMALL, title_fontsize=_SMALL, loc="lower right", handlelength=1.4)


def _table(axis: Axes, report: SurrogateReport) -> None:
    axis.axis("off")
    rows = [["", "surrogate", "simulator"], *report.rows(features=1)]
    for k, (name, generated, real) in enumerate(rows):
        y, wrong = 1 - (k + 0.5) / len(rows), _is_wrong(name, report)
        how: dict[str, Any] = {"transform": axis.transAxes, "va": "center", "fontsize": _SMALL}
        emphasis: dict[str, Any] = {"color": _WRONG, "fontweight": "bold"} if wrong else {}
        axis.text(0.0, y, _shortened(name, 31), **how, **emphasis)
        axis.text(0.7, y, generated, ha="right", **how, **(emphasis or ({"color": _MADE} if k == 0 else {})))
        axis.text(1.0, y, real, ha="right", **how)
    axis.plot([0, 1], [1 - 1 / len(rows)] * 2, color="0.6", linewidth=0.6, transform=axis.transAxes)


def _is_wrong(row: str, report: SurrogateReport) -> bool:
    """Whether a row is to blame for a test that failed."""
    test = next((test for begins, test in _TESTS.items() if row.startswith(begins)), "")
    if test not in report.failed:
        return False
    if test == "modes" and report.manifold is not None:
        return float(report.manifold.p_values[NAMES.index(row)]) <= report.manifold.level / len(NAMES)
    if test == "response" and report.response is not None:
        value, error = (
            report.response.energy_scale if row.startswith("response") else report.response.overall_resolution
        )
        return abs(value - 1) > _SIGMAS * error
    return True


def _responses(page: _Page, top: float, response: ResponseComparison, compared: ComparedEvents) -> None:
    unit = f" [{compared.unit}]" if compared.unit else ""
    for left, what, word, whole in (
        (0.75, "response", "mean seen / true energy", response.energy_scale),
        (4.05, "resolution", "relative resolution", response.overall_resolution),
    ):
        upper = page.axes(left, top + 0.2, 2.35, 1.35)
        lower = page.axes(left, top + 1.72, 2.35, 0.48, sharex=upper)
        upper.tick_params(labelbottom=False)
        energy = response.energy.numpy()
        for name, colour, marker, label, shift in (
            (what, _REAL, "o", "simulator", 0.985),
            (f"generated_{what}", _MADE, "s", "surrogate", 1.015),
        ):
            value, error = getattr(response, name).numpy(), getattr(response, f"{name}_error").numpy()
            upper.errorbar(
                shift * energy, value, error, fmt=marker, color=colour, markersize=3, linewidth=1, label=label
            )
        ratio, error = getattr(response, f"{what}_ratio").numpy(), getattr(response, f"{what}_ratio_error").numpy()
        _ratio(lower, energy, ratio, error)
        wide = energy[-1] > 4 * energy[0]
        if wide:
            upper.set_xscale("log")
        lower.set_xlabel(f"{compared.energy_name}{unit}", fontsize=_USUAL)
        upper.set_title(word, fontsize=_USUAL + 0.5, loc="left")
        lower.set_title(f"ratio over all bins {with_error(*whole)}", fontsize=_SMALL - 0.5, loc="right", pad=2)
        upper.legend(frameon=False, fontsize=_SMALL, ncols=2, columnspacing=1, handletextpad=0.2, loc="upper right")
        _headroom(upper, 0.3)


def _correlations(page: _Page, left: float, top: float, found: CorrelationDifference) -> None:
    axis = page.axes(left, top + 0.2, 2.0, 2.0)
    difference = found.difference.numpy()
    reach = max(0.02, float(np.abs(difference).max()))
    image = axis.imshow(difference, cmap="RdBu_r", vmin=-reach, vmax=reach, interpolation="nearest")
    axis.set_title("correlations, surrogate − simulator", fontsize=_USUAL + 0.5, loc="left", x=-0.15)
    first, second, generated, real, error = found.worst
    if len(found.names) <= _NAMED_CORRELATIONS:
        places = range(len(found.names))
        axis.set_xticks(places, [_shortened(name, 12) for name in found.names], rotation=90, fontsize=_SMALL - 1)
        axis.set_yticks(places, [_shortened(name, 12) for name in found.names], fontsize=_SMALL - 1)
    else:
        axis.set(xticks=[], yticks=[])
        words = f"most: {first}, {second}\n{generated:.2f} instead of {real:.2f} (error {error:.1g})"
        axis.set_xlabel(words, fontsize=_SMALL)
        i, j = found.names.index(first), found.names.index(second)
        for x, y in ((i, j), (j, i)):
            axis.add_patch(_frame(x, y))
    bar = page.figure.colorbar(image, cax=page.axes(left + 2.08, top + 0.2, 0.1, 2.0))
    bar.ax.tick_params(labelsize=_SMALL - 0.5)
    bar.locator = MaxNLocator(5, symmetric=True)
    bar.update_ticks()


def _frame(x: int, y: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 1, y - 1), 2, 2, fill=False, edgecolor="black", linewidth=0.9)


def _feature(panels: tuple[Axes, Axes], report: SurrogateReport, i: int) -> None:
    """Histograms of one feature, and their ratio."""
    upper, lower = panels
    compared, name = report.compared, report.compared.names[i]
    real, generated = compared.real[:, i].numpy(), compared.generated[:, i].numpy()
    edges, logarithmic = _edges(real, generated)
    (p, p_error), (q, q_error) = (
        _shares(values, weights, edges)
        for values, weights in ((real, compared.weights), (generated, compared.generated_weights))
    )
    upper.stairs(p, edges, fill=True, color="0.8", label="simulator")
    upper.stairs(q, edges, color=_MADE, linewidth=1.2, label="surrogate")
    centres = np.sqrt(edges[1:] * edges[:-1]) if logarithmic else 0.5 * (edges[1:] + edges[:-1])
    some = (p > 2 * p_error) & (q > 0)
    ratio = q[some] / p[some]
    error = np.hypot(q_error[some] / p[some], ratio * p_error[some] / p[some])
    _ratio(lower, centres[some], ratio, error)
    if logarithmic:
        upper.set_xscale("log")
        lower.xaxis.set_minor_formatter(NullFormatter())
        lower.xaxis.set_major_locator(LogLocator(numticks=5))
    else:
        lower.xaxis.set_major_locator(MaxNLocator(4))
    upper.set_xlim(edges[0], edges[-1])
    peaked = float(np.max(p)) > 20 * float(np.median(p[p > 0])) if (p > 0).any() else False
    if peaked:
        upper.set_yscale("log")
    upper.yaxis.set_major_locator(NullLocator())
    upper.yaxis.set_minor_locator(NullLocator())
    lower.set_xlabel(name, fontsize=_USUAL)
    wrong = float(report.separation.p_values[i]) <= report.separation.level / len(compared.names)
    text = f"S = {with_error(float(report.separation.value[i]), float(report.separation.error[i]))}"
    upper.set_title(text, fontsize=_SMALL, loc="left", pad=3, color=_WRONG if wrong else "0.2")
    if i == report.worst_features[0]:
        _headroom(upper, 0.35)
        upper.legend(frameon=False, fontsize=_SMALL - 0.5, ncols=2, columnspacing=0.8, handlelength=1, loc="upper left")


def _edges(real: np.ndarray[Any, Any], generated: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], bool]:
    """Edges of bins that hold nearly all real and most generated events, and whether they are even in the logarithm."""
    low = min(np.quantile(real, 0.004), np.quantile(generated, 0.01))
    high = max(np.quantile(real, 0.996), np.quantile(generated, 0.99))
    if not high > low:
        low, high = min(real.min(), generated.min()), max(real.max(), generated.max())
    values = np.unique(np.concatenate([real[:5000], generated[:5000]]))
    inside = values[(values >= low) & (values <= high)]
    if 1 < len(inside) <= _BINS:
        middle = 0.5 * (inside[1:] + inside[:-1])
        return np.concatenate(
            [[1.5 * inside[0] - 0.5 * inside[1]], middle, [1.5 * inside[-1] - 0.5 * inside[-2]]]
        ), False
    if low > 0 and high > 30 * low:
        return np.geomspace(low, high, _BINS + 1), True
    return np.linspace(low, high if high > low else low + 1, _BINS + 1), False


def _shares(
    values: np.ndarray[Any, Any], weights: Tensor, edges: np.ndarray[Any, Any]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The share of events in each bin, and its error."""
    w = weights.numpy()
    sums, squares = (np.histogram(values, edges, weights=part)[0] for part in (w, np.square(w)))
    return sums / w.sum(), np.sqrt(squares) / w.sum()


def _ratio(axis: Axes, x: np.ndarray[Any, Any], ratio: np.ndarray[Any, Any], error: np.ndarray[Any, Any]) -> None:
    axis.axhline(1, color="0.6", linewidth=0.8)
    axis.errorbar(x, ratio, error, fmt="o", color=_MADE, markersize=2, linewidth=0.8)
    far = np.quantile(np.abs(ratio - 1) + error, 0.85) if len(ratio) else 0.1
    reach = next((step for step in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if far <= 1.1 * step), 1.0)
    axis.set_ylim(1 - 1.4 * reach, 1 + 1.4 * reach)
    axis.set_yticks([1 - reach, 1, 1 + reach])
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:.4g}")


def _headroom(axis: Axes, share: float) -> None:
    """Room for a legend above what is drawn."""
    low, high = axis.get_ylim()
    axis.set_ylim(low, high * (high / low) ** share if axis.get_yscale() == "log" else high + share * (high - low))


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
