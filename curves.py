"""Curves over all thresholds of the probabilities: precision and recall, ROC, and scores by threshold."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn import metrics

from plots import GREY, Plot, shorten_all, styled

MOST_CURVES = 10  # labels with a curve in a colour of its own
MOST_POINTS = 1000  # of a curve


@dataclass(frozen=True)
class Curve:
    """A curve of one label, and the area under it."""

    label: str
    x: np.ndarray
    y: np.ndarray
    area: float


def precision_recall_curves(labels: list[str], indicators: np.ndarray, probabilities: np.ndarray) -> list[Curve]:
    """Precision by recall of each of K labels that has a row; indicators are 0 and 1, [N, K], probabilities float32 [N, K]."""
    curves = []
    for label, truth, scores in zip(labels, indicators.T, probabilities.T, strict=True):
        if truth.any():
            precision, recall, _ = metrics.precision_recall_curve(truth, scores, drop_intermediate=True)
            precision[-1] = precision[-2]  # of no row at all, which scikit-learn takes as 1
            curves.append(Curve(label, recall, precision, metrics.average_precision_score(truth, scores)))
    return curves


def roc_curves(labels: list[str], indicators: np.ndarray, probabilities: np.ndarray) -> list[Curve]:
    """True by false positive rate of each of K labels that has rows with and without it; arguments as above."""
    curves = []
    for label, truth, scores in zip(labels, indicators.T, probabilities.T, strict=True):
        if truth.any() and not truth.all():
            wrong, right, _ = metrics.roc_curve(truth, scores)
            curves.append(Curve(label, wrong, right, metrics.roc_auc_score(truth, scores)))
    return curves


@styled
def precision_recall(
    labels: list[str], indicators: np.ndarray, probabilities: np.ndarray, points: dict[str, float] | None = None
) -> Plot:
    """Precision by recall of K labels; indicators are 0 and 1, [N, K], probabilities float32 [N, K].

    Binary tasks pass the positive class alone, and in `points` the thresholds to be marked, by name.
    """
    curves = precision_recall_curves(shorten_all(labels), indicators, probabilities)
    figure = Figure((7.2, 4.2))
    axes = figure.subplots()
    axes.set(xlabel="recall", ylabel="precision")
    alt = _draw_curves(axes, curves, "average precision", len(labels), "positive rows", "steps-post")
    if len(labels) == 1 and curves:
        share = indicators.mean()
        alt += f" {share:.1%} of {len(indicators):,} rows are positive."
        axes.axhline(share, color=GREY, linestyle=":", label=f"{share:.3f} of rows positive")
        for name, threshold in (points or {}).items():
            precision, recall, _, _ = metrics.precision_recall_fscore_support(
                indicators[:, 0], probabilities[:, 0] >= threshold, average="binary", zero_division=np.nan
            )
            alt += _mark(axes, name, {"recall": recall, "precision": precision})
    _legend_beside(axes, "average precision" if len(labels) > 1 else None)
    return Plot("precision_recall", "Precision and recall", alt, figure)


@styled
def roc(
    labels: list[str], indicators: np.ndarray, probabilities: np.ndarray, points: dict[str, float] | None = None
) -> Plot:
    """True positive rate by false positive rate; the arguments are those of `precision_recall`."""
    curves = roc_curves(shorten_all(labels), indicators, probabilities)
    figure = Figure((7.2, 4.2))
    axes = figure.subplots()
    axes.set(xlabel="false positive rate", ylabel="true positive rate")
    alt = _draw_curves(axes, curves, "ROC AUC", len(labels), "both positive and negative rows", "default")
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="chance")
    if len(labels) == 1 and curves:
        truth = indicators[:, 0] > 0
        for name, threshold in (points or {}).items():
            chosen = probabilities[:, 0] >= threshold
            rates = {"false positive rate": chosen[~truth].mean(), "true positive rate": chosen[truth].mean()}
            alt += _mark(axes, name, rates)
    _legend_beside(axes, "ROC AUC" if len(labels) > 1 else None)
    return Plot("roc", "ROC curve" + "s" * (len(labels) > 1), alt, figure)


def _draw_curves(axes: Axes, curves: list[Curve], area: str, k: int, needed: str, drawstyle: Any) -> str:
    """Draws the curves of K labels, of many the best and the worst in colours, and says in words what they show."""
    curves = sorted(curves, key=lambda curve: -curve.area)
    grey = curves[3:-3] if len(curves) > MOST_CURVES else []
    for i, curve in enumerate(grey):
        look: Any = {"color": "0.8", "linestyle": "-", "linewidth": 0.8, "label": None if i else f"{len(grey)} others"}
        axes.plot(*thin(curve.x, curve.y), drawstyle=drawstyle, **look)
    for curve in curves[:3] + curves[-3:] if grey else curves:
        label = f"{curve.area:.3f} {curve.label if k > 1 else area}"  # an underscore in front would hide a label
        axes.plot(*thin(curve.x, curve.y), drawstyle=drawstyle, label=label)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    if not curves:
        return f"No label has {needed}."
    if k == 1:
        return f"{area[0].upper()}{area[1:]} {curves[0].area:.3f}."
    mean = np.mean([curve.area for curve in curves])
    axes.set_title(f"mean {area} of {len(curves)} labels: {mean:.3f}")
    best, worst = (", ".join(f"“{c.label}” {c.area:.3f}" for c in some) for some in (curves[:3], curves[3:][-3:]))
    alt = f"Mean {area} of {len(curves)} labels {mean:.3f}; best {best}" + f"; worst {worst}" * bool(worst) + "."
    return alt + f" Labels without {needed}, left out: {k - len(curves)} of {k}." * (len(curves) < k)


def _mark(axes: Axes, name: str, place: dict[str, float]) -> str:
    """Marks a threshold on a curve and says where it is."""
    (x, y), marker = place.values(), "osD^v"[len(axes.collections) % 5]
    where = [f"{what} {value:.3f}" for what, value in place.items()]
    text = "\n".join([name, *where])
    axes.scatter([x], [y], s=50, color="white", edgecolor="black", marker=marker, zorder=3, label=text)
    return f" At {name}: {', '.join(where)}."


def _legend_beside(axes: Axes, title: str | None = None) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), alignment="left", title=title)


def thin(x: np.ndarray, y: np.ndarray, most: int = MOST_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most `most` points of a curve, evenly along its length, with both ends."""
    if len(x) <= most:
        return x, y
    length = np.cumsum(np.hypot(np.diff(x, prepend=x[0]), np.diff(y, prepend=y[0])))
    keep = np.unique(np.searchsorted(length, np.linspace(0, length[-1], most)))
    return x[keep], y[keep]


@styled
def threshold_curve(label: str, truth: np.ndarray, scores: np.ndarray, threshold: float) -> Plot:
    """Precision, recall and F1 of the positive class by threshold; truth is 0 and 1, [N], scores are probabilities, [N]."""
    (name,) = shorten_all([label])
    figure = Figure((7.2, 3.6))
    axes = figure.subplots()
    axes.set(xlabel=f"threshold on the probability of “{name}”", xlim=(0, 1), ylim=(-0.01, 1.01))
    if not truth.any():
        return Plot("thresholds", "Scores by threshold, on validation rows", f"No row of “{name}”.", figure)
    precision, recall, cuts = metrics.precision_recall_curve(truth, scores)
    total = precision + recall
    f1 = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)
    cuts = np.concatenate([[0], cuts, [1]])
    for measure, values in {"precision": precision[:-1], "recall": recall, "F1": f1}.items():
        values = np.concatenate([values[:1], values])
        axes.plot(*thin(cuts[: len(values)], values), drawstyle="steps-pre", label=measure)
    alt = []
    for value in sorted({0.5, threshold}):
        precision, recall, f1, _ = metrics.precision_recall_fscore_support(
            truth, scores >= value, average="binary", zero_division=0.0
        )
        chosen = f"threshold {value:.3g}" + " (chosen)" * (value == threshold)
        axes.axvline(value, color="black", linestyle="-" if value == threshold else ":", label=f"{chosen}\nF1 {f1:.3f}")
        alt.append(f"{chosen.capitalize()}: precision {precision:.3f}, recall {recall:.3f}, F1 {f1:.3f}.")
    _legend_beside(axes)
    alt.append("These rows chose the threshold, which flatters it.")
    return Plot("thresholds", "Scores by threshold, on validation rows", " ".join(alt), figure)
