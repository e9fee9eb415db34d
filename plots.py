"""Every plot of a run: how it learnt, what it takes for what, how far its probabilities can be trusted, and its data."""

import contextlib
import functools
import io
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import matplotlib.style
import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from metrics import CALIBRATION_BINS

MOST_ANNOTATED = 15  # labels of a confusion matrix with numbers in its cells
MOST_NAMED = 32  # labels along an axis; of more, every nth is named
_HEADLINES = ["accuracy", "macro_f1", "micro_f1", "f1", "average_precision"]
GREY = "0.45"
# Okabe and Ito's palette for all kinds of colour vision, without its yellow, which is faint on white.
_COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000"]
_LINES = ["-", "--", "-.", ":"]
_CYCLE = range(len(_COLOURS) * len(_LINES))
_STYLE = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.prop_cycle": cycler("color", [_COLOURS[i % 7] for i in _CYCLE])
    + cycler("linestyle", [_LINES[i % 4] for i in _CYCLE]),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "figure.constrained_layout.use": True,
    "figure.dpi": 120,
    "grid.color": "0.9",
    "legend.fontsize": 9,
    "legend.frameon": False,
    "legend.title_fontsize": 9,
    "lines.markersize": 5,
    "text.parse_math": False,  # labels are the user's, dollar signs and all
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
}
styled = matplotlib.style.context(["default", _STYLE])  # whatever a matplotlibrc says
_WHOLE = functools.partial(MaxNLocator, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1)
_NUMBER = FuncFormatter(lambda value, _: f"{value:,.0f}")
_PERCENT = FuncFormatter(lambda value, _: f"{100 * value:.3g}%")


@dataclass(frozen=True)
class Plot:
    """A figure, its file stem, a short heading, and in words what is to be seen."""

    name: str
    title: str
    alt: str
    figure: Figure

    @styled
    def __post_init__(self) -> None:
        if engine := self.figure.get_layout_engine():
            with _boxes_for_unknown_letters():
                engine.execute(self.figure)
        self.figure.set_layout_engine("none")  # it would else move things at every drawing

    @functools.cached_property
    @styled
    def png(self) -> bytes:
        """The figure as PNG, the same bytes every time."""
        buffer = io.BytesIO()
        with _boxes_for_unknown_letters():
            FigureCanvasAgg(self.figure).print_png(buffer, metadata={"Software": None})  # type: ignore[no-untyped-call]
        return buffer.getvalue()


@contextlib.contextmanager
def _boxes_for_unknown_letters() -> Iterator[None]:
    """Keeps quiet about emoji and letters that the font lacks."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        yield


@dataclass(frozen=True)
class TextLengths:
    """Lengths of N texts, int [N] each; tokens are uncut and count the special ones."""

    words: np.ndarray
    characters: np.ndarray
    tokens: np.ndarray


@styled
def learning_curves(history: pd.DataFrame) -> Plot:
    """Losses and validation scores by epoch; without validation rows, the training accuracy."""
    history = history.replace([np.inf, -np.inf], np.nan)
    epochs, part = history["epoch"], "val_" if "val_loss" in history else ""
    figure = Figure((7.2, 3.6))
    losses, scores = figure.subplots(1, 2)
    losses.set_title("Loss")
    scores.set_title("Scores on the validation rows" if part else "Accuracy on the training rows")
    marker = "o" if len(history) <= 20 else None
    alt = [f"{len(history)} epoch{'s' * (len(history) > 1)}."]
    for column, name in {"loss": "training", "val_loss": "validation"}.items():
        if column in history:
            losses.plot(epochs, history[column], marker=marker, label=name)
            path = " to ".join(f"{loss:.3f}" for loss in history[column].iloc[[0, -1][: len(history)]])
            alt.append(f"{name.capitalize()} loss {path}.")
    for column in _HEADLINES:
        if part + column in history:
            name, values = column.replace("_", " ").replace("f1", "F1"), history[part + column]
            scores.plot(epochs, values, marker=marker, label=name)
            if values.notna().any():
                alt.append(f"Best {name} {values.max():.3f}, in epoch {epochs.iloc[np.nanargmax(values)]}.")
    for axes in (losses, scores):
        axes.set(xlabel="epoch", xlim=(epochs.min() - 0.5, epochs.max() + 0.5))
        axes.xaxis.set_major_locator(_WHOLE())
        axes.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.18), ncols=2)
    return Plot("learning_curves", "Learning curves", " ".join(alt), figure)


@styled
def confusion(labels: list[str], matrix: np.ndarray) -> Plot:
    """Rows by true and by predicted label, int [K, K]; the colour is the share of the true label's rows."""
    k, totals, names = len(labels), matrix.sum(axis=1), shorten_all(labels)
    shares = np.divide(matrix, totals[:, None], out=np.full(matrix.shape, np.nan), where=totals[:, None] > 0)
    figure = Figure((7.2, min(2.2 + 0.4 * k, 7.2)))
    axes = figure.subplots()
    axes.grid(False)
    axes.set_facecolor("0.85")  # of rows without any example
    gamma = 1 if k <= MOST_ANNOTATED else 0.5  # so that small shares are seen where no number says them
    image = axes.imshow(shares, "Blues", PowerNorm(gamma, 0, 1), aspect="auto", interpolation="nearest")
    places = _name_across(axes, names)
    axes.set_yticks(places, [f"{names[i]} ({totals[i]:,})" for i in places])
    axes.set(xlabel="predicted", ylabel="true (rows)")
    if k <= MOST_ANNOTATED:
        _annotate(axes, matrix, shares)
    else:
        figure.colorbar(image, location="top", format=_PERCENT, aspect=50, label="share of the true label's rows")
    right, wrong = np.trace(matrix), matrix * (1 - np.eye(k, dtype=np.int64))
    alt = f"{right:,} of {matrix.sum():,} rows ({right / max(matrix.sum(), 1):.1%}) are on the diagonal."
    if wrong.any():
        i, j = np.unravel_index(wrong.argmax(), wrong.shape)
        alt += f" The most frequent confusion: {wrong[i, j]:,} of {totals[i]:,} rows of “{names[i]}” taken for “{names[j]}”."
    if empty := int((totals == 0).sum()):
        alt += f" Labels without a row, in grey: {empty} of {k}."
    return Plot("confusion_matrix", "Confusion matrix", alt, figure)


def _annotate(axes: Axes, matrix: np.ndarray, shares: np.ndarray) -> None:
    """Writes rows and shares into the cells of a confusion matrix."""
    few = len(matrix) <= 10
    for (i, j), count in np.ndenumerate(matrix):
        text = f"{count:,}" if few else f"{count}" if count < 10_000 else f"{count / 1000:.0f}k"
        if count:
            text += f"\n{shares[i, j]:.1%}" if few else f"\n{shares[i, j]:.0%}"
        colour = "white" if shares[i, j] > 0.65 else "black" if count else GREY
        axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=11 if len(matrix) <= 4 else 9)
    axes.set_title("rows, and their share of the true label's rows")


def _name_across(axes: Axes, names: list[str]) -> np.ndarray:
    """Writes the names of K labels, or of every nth, along the x axis; returns the positions of those that are named."""
    places = np.arange(0, len(names), -(-len(names) // MOST_NAMED))
    axes.set_xticks(places, [names[i] for i in places], rotation=0 if sum(map(len, names)) <= 50 else 90)
    return places


def shorten_all(labels: list[str]) -> list[str]:
    """Labels on one line each, the middle left out of long ones, more so where there are many."""
    most = 24 if len(labels) <= 3 else 16
    lines = [" ".join(label.split()) for label in labels]
    return [line if len(line) <= most else f"{line[: most - 7]}…{line[-6:]}" for line in lines]


@styled
def reliability(
    before: np.ndarray, after: np.ndarray | None, right: np.ndarray, errors: tuple[float, float | None]
) -> Plot:
    """How often predictions are right by their probability, before and after calibration (None: it was not kept).

    Probabilities are [N], `right` is 0 and 1, [N]; `errors` are the expected calibration errors before and after.
    """
    figure = Figure((7.2, 5.6))
    top, bottom = figure.subplots(2, 1, height_ratios=[3, 1], sharex=True)
    top.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="perfect calibration")
    sets = {"as predicted": before} if after is None else {"before calibration": before, "after calibration": after}
    alt = f"Observed shares by predicted probability, in {CALIBRATION_BINS} bins."
    for i, ((name, values), error) in enumerate(zip(sets.items(), errors, strict=False)):
        bins = np.minimum((values * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
        counts = np.bincount(bins, minlength=CALIBRATION_BINS)
        bottom.stairs(
            counts, np.linspace(0, 1, CALIBRATION_BINS + 1), color=_COLOURS[i], linestyle=_LINES[i], linewidth=1.5
        )
        rows = counts[counts > 0]
        mean, share = (np.bincount(bins, v, CALIBRATION_BINS)[counts > 0] / rows for v in (values, right))
        look: Any = {"color": _COLOURS[i], "alpha": 0.8, "zorder": 3}
        top.vlines(mean, *wilson(share, rows), linewidth=1, **look)
        sizes, label = 20 + 200 * rows / rows.max(initial=1), f"{name}: expected calibration error {error:.3f}"
        top.scatter(mean, share, sizes, marker="os"[i], linewidth=0, label=label, **look)
        alt += f" Expected calibration error {error:.3f} {name}."
    _count_axis(bottom)
    bottom.set(xlabel="predicted probability", ylabel="predictions")
    top.set(ylabel="observed share, 95% interval", xlim=(-0.02, 1.02), ylim=(-0.03, 1.03))
    figure.legend(loc="outside upper left", markerscale=0.6)
    return Plot("reliability", "Reliability of the probabilities", alt, figure)


def wilson(share: np.ndarray, rows: np.ndarray, z: float = 1.96) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of a share of rows (Wilson, Journal of the American Statistical Association 22, 1927)."""
    middle = (share + z**2 / (2 * rows)) / (1 + z**2 / rows)
    half = z / (1 + z**2 / rows) * np.sqrt(share * (1 - share) / rows + z**2 / (4 * rows**2))
    return middle - half, middle + half


def _count_axis(axes: Axes) -> None:
    """A log axis of counts on which 0 lies just below 1."""
    axes.set_ylim(0.5, max(1.5 * axes.get_ylim()[1], 10))
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(_NUMBER)
    axes.yaxis.set_minor_formatter(NullFormatter())


@styled
def label_distribution(labels: list[str], counts: dict[str, np.ndarray]) -> Plot:
    """Rows of each label, int [K], in each part, the most frequent in the first part first."""
    k, names, (first, totals) = len(labels), shorten_all(labels), next(iter(counts.items()))
    order = np.argsort(-totals, kind="stable")
    most, least = (f"“{names[i]}” {totals[i]:,}" for i in order[[0, -1]])
    alt = f"{k} labels; in {first} from {most} rows to {least}."
    figure = Figure((7.2, 4.4))
    axes = figure.subplots()
    axes.grid(False, axis="x")
    for i, (part, rows) in enumerate(counts.items()):
        if k <= MOST_NAMED:
            width = 0.84 / len(counts)
            places = np.arange(k) + (i + 0.5) * width - 0.42
            axes.bar(places, rows[order], width, color=_COLOURS[i], label=part)
            for place, n in zip(places, rows[order], strict=True):
                if k <= 4 or n == 0:
                    axes.text(place, max(n, 0.5), f"{n:,}", ha="center", va="bottom", fontsize=9)
        else:
            axes.stairs(rows[order], np.arange(k + 1) - 0.5, color=_COLOURS[i], label=part, **_outline(i))
        if empty := int((rows == 0).sum()):
            alt += f" Labels without a row in {part}: {empty}."
    _count_axis(axes)
    _name_across(axes, [names[i] if k <= 4 else f"{names[i]} ({totals[i]:,})" for i in order])
    axes.set(xlim=(-0.6, k - 0.4), ylabel="rows", xlabel="label" if k <= 4 else f"label (rows in {first})")
    figure.legend(loc="outside upper left", ncols=len(counts))
    return Plot("label_distribution", "Rows by label", alt, figure)


@styled
def text_lengths(parts: dict[str, TextLengths], max_seq_length: int) -> Plot:
    """Shares of each part's texts by words, characters and tokens, and what `max_seq_length` cuts off."""
    figure = Figure((7.2, 7.2))
    panels, titles, cuts = figure.subplots(3, 1), [], []
    for axes, unit in zip(panels, ("words", "characters", "tokens"), strict=True):
        lengths = {part: getattr(texts, unit) for part, texts in parts.items()}
        facts = [f"{part} mean {n.mean():,.{int(n.mean() < 100)}f}, longest {n.max():,}" for part, n in lengths.items()]
        titles.append(f"{unit.capitalize()}: {'; '.join(facts)}")
        longer = _draw_lengths(axes, lengths)
        axes.set(xlabel=unit + f" (not in view: {longer:,} longer)" * bool(longer))
    for part, texts in parts.items():
        cut = np.maximum(texts.tokens - max_seq_length, 0)
        share = cut.sum() / max(texts.tokens.sum(), 1)
        cuts.append(f"{part} {share:.1%} of tokens, {(cut > 0).mean():.1%} of texts")
    titles.append(f"Cut at {max_seq_length}: {'; '.join(cuts)}")
    for axes, lines in zip(panels, (titles[:1], titles[1:2], titles[2:]), strict=True):
        axes.set_title("\n".join(textwrap.fill(line, 90) for line in lines))
    end = panels[2].get_xlim()[1]
    beyond = " (not in view)" if max_seq_length > 1.5 * end else ""
    panels[2].axvline(max_seq_length, color="black", label=f"max_seq_length {max_seq_length}{beyond}")
    panels[2].set_xlim(0, end if beyond else max(end, 1.02 * max_seq_length))
    figure.legend(*panels[2].get_legend_handles_labels(), loc="outside upper left", ncols=len(parts) + 1)
    return Plot("text_lengths", "Lengths of the texts", ". ".join(titles) + ".", figure)


def _draw_lengths(axes: Axes, lengths: dict[str, np.ndarray]) -> int:
    """Histograms, up to the 99.5th percentile where the longest text is far beyond it; returns how many texts are beyond."""
    values = np.concatenate(list(lengths.values()))
    end = np.percentile(values, 99.5, method="lower")
    end = values.max() if values.max() <= 1.5 * end else end
    width = int(end) // 60 + 1
    edges = np.arange(values.min() // width * width, end + width + 1, width) - 0.5
    for i, (part, n) in enumerate(lengths.items()):
        shares = np.histogram(n, edges)[0] / len(n)
        axes.stairs(shares, edges, color=_COLOURS[i], label=part, **_outline(i))
    axes.set(ylabel="share of texts", xlim=(0, edges[-1]))
    axes.xaxis.set_major_locator(_WHOLE())
    axes.xaxis.set_major_formatter(_NUMBER)
    axes.yaxis.set_major_formatter(_PERCENT)
    return int((values > edges[-1]).sum())


def _outline(i: int) -> dict[str, Any]:
    """Looks of the ith step curve: the first is filled."""
    return {"fill": True, "alpha": 0.4} if i == 0 else {"linestyle": _LINES[i - 1], "linewidth": 1.2}
