"""plots.py and curves.py: what the figures show and say, whatever the labels and however few or many the rows."""

import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from sklearn import metrics

from curves import MOST_POINTS, precision_recall, roc, thin, threshold_curve
from plots import (
    MOST_NAMED,
    Plot,
    TextLengths,
    confusion,
    label_distribution,
    learning_curves,
    reliability,
    text_lengths,
    wilson,
)

ROOT = Path(__file__).parent.parent
ODD = ["$x_1$", "😀", "日本語", "عربى", "a" * 300, "_hidden", "two\nlines", "\\frac", "$"]
HISTORY = pd.DataFrame(
    {
        "epoch": [1, 2, 3],
        "loss": [0.9, 0.5, 0.3],
        "accuracy": [0.5, 0.7, 0.8],
        "val_loss": [0.8, 0.6, 0.7],
        "val_accuracy": [0.6, 0.75, 0.7],
        "val_macro_f1": [0.5, 0.61, 0.62],
        "val_label_ranking_average_precision": [0.1, 0.1, 0.1],
    }
)


def scored(rows: int, k: int, seed: int = 0) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Labels, indicators [N, K] and probabilities [N, K] that are right more often than not."""
    random = np.random.default_rng(seed)
    indicators = (random.random((rows, k)) < 0.3).astype(np.float32)
    logits = 2 * indicators - 1 + random.normal(size=(rows, k))
    return [f"l{i}" for i in range(k)], indicators, (1 / (1 + np.exp(-logits))).astype(np.float32)


def lengths(tokens: list[int]) -> TextLengths:
    n = np.array(tokens)
    return TextLengths(n // 2, n * 4, n)


def every_plot(labels: list[str]) -> list[Plot]:
    k = len(labels)
    _, indicators, probabilities = scored(50, k)
    matrix = np.arange(k * k).reshape(k, k)
    return [
        learning_curves(HISTORY),
        confusion(labels, matrix),
        precision_recall(labels, indicators, probabilities, None),
        roc(labels, indicators, probabilities, None),
        threshold_curve(labels[0], indicators[:, 0], probabilities[:, 0], 0.3),
        reliability(probabilities[:, 0], probabilities[:, 0] ** 2, indicators[:, 0], (0.1, 0.2)),
        label_distribution(labels, {"train": matrix[0], "valid": matrix[1]}),
        text_lengths({"train": lengths([3, 9, 27]), "valid": lengths([5])}, 8),
    ]


def texts(figure: Figure) -> list[Text]:
    return [text for text in figure.findobj(Text) if isinstance(text, Text) and text.get_text()]


def curve(plot: Plot, label: str) -> np.ndarray:
    """Points, [M, 2], of the line with that label."""
    (line,) = (line for axes in plot.figure.axes for line in axes.lines if line.get_label() == label)
    return np.asarray(line.get_xydata())


@pytest.mark.parametrize("labels", [ODD, [f"{i} {'long' * (i % 9)}" for i in range(200)]])
def test_any_label_is_drawn_literally_and_readably(labels: list[str]) -> None:
    for plot in every_plot(labels):
        png = plot.png
        assert png.startswith(b"\x89PNG\r\n\x1a\n")
        assert struct.unpack(">I", png[16:20]) == (864,)
        assert not any(text.get_parse_math() for text in texts(plot.figure))
        assert min(float(text.get_fontsize()) for text in texts(plot.figure)) >= 9
        assert max(len(line) for text in texts(plot.figure) for line in text.get_text().split("\n")) <= 90


def test_the_same_bytes_come_again_whatever_the_users_matplotlibrc_which_is_left_alone() -> None:
    plots = every_plot(["no", "yes"])
    assert len({plot.name for plot in plots}) == len(plots)
    plain = [plot.png for plot in plots]
    mine: Any = {"axes.facecolor": "black", "savefig.bbox": "tight", "font.size": 20.0, "text.parse_math": True}
    with matplotlib.rc_context(mine):
        assert [plot.png for plot in every_plot(["no", "yes"])] == plain
        assert {name: matplotlib.rcParams[name] for name in mine} == mine


def test_no_pyplot_and_no_tensorflow_are_loaded() -> None:
    code = "import sys, plots; print({'matplotlib.pyplot', 'tensorflow'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_learning_curves_show_losses_and_the_headline_scores_of_the_validation_rows() -> None:
    plot = learning_curves(HISTORY)
    assert curve(plot, "validation")[:, 1].tolist() == [0.8, 0.6, 0.7]
    assert curve(plot, "accuracy")[:, 1].tolist() == [0.6, 0.75, 0.7]
    assert [line.get_label() for line in plot.figure.axes[1].lines] == ["accuracy", "macro F1"]
    assert "Validation loss 0.800 to 0.700." in plot.alt
    assert "Best accuracy 0.750, in epoch 2. Best macro F1 0.620, in epoch 3." in plot.alt


def test_learning_curves_without_validation_rows_of_one_epoch_and_of_a_run_that_diverged() -> None:
    one = learning_curves(HISTORY[["epoch", "loss", "accuracy"]].iloc[:1])
    assert [axes.get_title(loc="left") for axes in one.figure.axes] == ["Loss", "Accuracy on the training rows"]
    assert one.figure.axes[0].lines[0].get_marker() == "o"
    assert one.alt == "1 epoch. Training loss 0.900. Best accuracy 0.500, in epoch 1."
    diverged = learning_curves(HISTORY.assign(val_loss=np.inf, val_accuracy=np.nan, val_macro_f1=[0.5, np.nan, np.nan]))
    assert "Best macro F1 0.500, in epoch 1." in diverged.alt
    assert "accuracy" not in diverged.alt


def test_confusion_writes_every_count_and_its_share_of_the_true_label() -> None:
    plot = confusion(["a", "b", "c"], np.array([[1200, 300, 0], [2, 6, 0], [0, 0, 0]]))
    (axes,) = plot.figure.axes
    assert [text.get_text() for text in axes.texts] == [
        *("1,200\n80.0%", "300\n20.0%", "0"),
        *("2\n25.0%", "6\n75.0%", "0"),
        *("0", "0", "0"),
    ]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["a (1,500)", "b (8)", "c (0)"]
    shares: np.ndarray = np.ma.filled(np.ma.asarray(axes.images[0].get_array()), np.nan)
    assert shares == pytest.approx(np.array([[0.8, 0.2, 0], [0.25, 0.75, 0], [np.nan] * 3]), nan_ok=True)
    assert "1,206 of 1,508 rows (80.0%)" in plot.alt
    assert "300 of 1,500 rows of “a” taken for “b”" in plot.alt
    assert "Labels without a row, in grey: 1 of 3." in plot.alt


def test_confusion_of_200_labels_is_a_picture_with_every_nth_label_named() -> None:
    plot = confusion([f"l{i}" for i in range(200)], np.eye(200, dtype=np.int64))
    axes = plot.figure.axes[0]
    assert not axes.texts
    assert 20 < len(axes.get_xticks()) <= MOST_NAMED
    assert [text.get_text() for text in axes.get_xticklabels()][:2] == ["l0", "l7"]


def test_curves_of_a_binary_task_agree_with_scikit_learn_and_are_marked_at_the_thresholds() -> None:
    labels, truth, probabilities = scored(400, 1)
    points = {"threshold 0.31": 0.31, "threshold 0.999": 0.999}
    plot = precision_recall(labels, truth, probabilities, points)
    assert f"Average precision {metrics.average_precision_score(truth, probabilities):.3f}." in plot.alt
    assert f"{truth.mean():.1%} of 400 rows are positive" in plot.alt
    (axes,) = plot.figure.axes
    chosen = probabilities >= 0.31
    where = [metrics.recall_score(truth, chosen), metrics.precision_score(truth, chosen)]
    assert np.asarray(axes.collections[0].get_offsets())[0] == pytest.approx(where)
    assert "At threshold 0.31: recall {:.3f}, precision {:.3f}.".format(*where) in plot.alt
    assert "At threshold 0.999: recall 0.000, precision nan." in plot.alt  # no row is chosen
    ranked = roc(labels, truth, probabilities, points)
    assert f"ROC AUC {metrics.roc_auc_score(truth, probabilities):.3f}." in ranked.alt
    rates = [chosen[truth == 0].mean(), chosen[truth == 1].mean()]
    assert np.asarray(ranked.figure.axes[0].collections[0].get_offsets())[0] == pytest.approx(rates)


def test_the_area_under_the_drawn_steps_is_the_average_precision() -> None:
    labels, truth, probabilities = scored(400, 1)
    line = precision_recall(labels, truth, probabilities).figure.axes[0].lines[0]
    recall, precision = np.asarray(line.get_xydata()).T
    assert line.get_drawstyle() == "steps-post"
    assert -np.diff(recall) @ precision[:-1] == pytest.approx(metrics.average_precision_score(truth, probabilities))
    wrong_first = precision_recall(["a"], np.array([[0], [1]]), np.array([[0.9], [0.1]], np.float32))
    assert np.asarray(wrong_first.figure.axes[0].lines[0].get_ydata()).max() == 0.5  # no point for no row at all


def test_curves_of_many_labels_name_the_best_and_the_worst_and_leave_out_what_has_no_curve() -> None:
    labels, truth, probabilities = scored(300, 14)
    truth[:, 0], truth[:, 1] = 0, 1
    scores = {f"l{i}": metrics.average_precision_score(truth[:, i], probabilities[:, i]) for i in range(1, 14)}
    ranked = sorted(scores, key=lambda label: -scores[label])
    plot = precision_recall(labels, truth, probabilities, None)
    named = [str(line.get_label()) for line in plot.figure.axes[0].lines if to_hex(line.get_color()) != to_hex("0.8")]
    assert named == [f"{scores[label]:.3f} {label}" for label in ranked[:3] + ranked[-3:]]
    assert len(plot.figure.axes[0].lines) == 13
    assert f"of 13 labels {np.mean(list(scores.values())):.3f}; best “{ranked[0]}” {scores[ranked[0]]:.3f}" in plot.alt
    assert "Labels without positive rows, left out: 1 of 14." in plot.alt
    assert "Labels without both positive and negative rows, left out: 2 of 14." in roc(labels, truth, probabilities).alt


def test_few_labels_have_a_curve_each_told_apart_by_colour_and_line() -> None:
    lines = precision_recall(*scored(100, 10)).figure.axes[0].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 10


def test_thinned_curves_keep_their_ends_and_their_shape() -> None:
    _, truth, probabilities = scored(100_000, 1)
    wrong, right, _ = metrics.roc_curve(truth, probabilities, drop_intermediate=False)
    x, y = thin(wrong, right)
    assert len(x) <= MOST_POINTS < len(wrong)
    assert [(x[0], y[0]), (x[-1], y[-1])] == [(0, 0), (1, 1)]
    assert np.hypot(np.diff(x), np.diff(y)).max() < 0.004
    for plot in (
        precision_recall(["a"], truth, probabilities),
        threshold_curve("a", truth[:, 0], probabilities[:, 0], 0.3),
    ):
        assert max(len(np.asarray(line.get_xydata())) for line in plot.figure.axes[0].lines) <= MOST_POINTS


def test_threshold_curve_says_what_scikit_learn_says_at_each_threshold() -> None:
    _, truth, probabilities = scored(300, 1)
    truth, probabilities = truth[:, 0], probabilities[:, 0]
    plot = threshold_curve("spam", truth, probabilities, 0.37)
    points = curve(plot, "F1")
    assert {line.get_drawstyle() for line in plot.figure.axes[0].lines[:3]} == {"steps-pre"}
    for threshold in (0.0, 0.2, 0.37, 0.5, 0.9, 1.0):
        at = points[np.searchsorted(points[:, 0], threshold), 1]  # steps hold up to their right end
        assert at == pytest.approx(metrics.f1_score(truth, probabilities >= threshold))
    chosen = metrics.f1_score(truth, probabilities >= 0.37)
    _, legend = plot.figure.axes[0].get_legend_handles_labels()
    assert legend == ["precision", "recall", "F1", f"threshold 0.37 (chosen)\nF1 {chosen:.3f}", legend[4]]
    assert f"F1 {chosen:.3f}. Threshold 0.5: precision" in plot.alt
    assert plot.figure.axes[0].get_xlabel() == "threshold on the probability of “spam”"


def test_reliability_sets_the_observed_share_against_the_mean_probability_of_each_bin() -> None:
    before = np.array([0.01, 0.03, 0.5, 0.5, 0.5, 0.5, 1.0], np.float32)
    right = np.array([0, 0, 1, 1, 1, 0, 1])
    plot = reliability(before, before / 2, right, (0.123, 0.045))
    top, bottom = plot.figure.axes
    marks = [collection for collection in top.collections if isinstance(collection, PathCollection)]
    assert np.asarray(marks[0].get_offsets()) == pytest.approx(np.array([[0.02, 0], [0.5, 0.75], [1, 1]]))
    sizes = marks[0].get_sizes()
    assert sizes[1] > sizes[0] > sizes[2]
    assert bottom.get_yscale() == "log"
    assert {
        "before calibration: expected calibration error 0.123",
        "after calibration: expected calibration error 0.045",
    } <= {str(mark.get_label()) for mark in marks}
    assert "0.123 before calibration. Expected calibration error 0.045 after calibration." in plot.alt
    assert "0.123 as predicted." in reliability(before, None, right, (0.123, None)).alt


def test_wilson_intervals_are_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    low, high = wilson(np.array([0.0, 0.25, 1.0]), np.array([3, 40, 7]))
    expected = [stats.binomtest(*counts).proportion_ci(method="wilson") for counts in ((0, 3), (10, 40), (7, 7))]
    assert low == pytest.approx([interval.low for interval in expected], abs=1e-4)
    assert high == pytest.approx([interval.high for interval in expected], abs=1e-4)


def test_label_distribution_is_sorted_logarithmic_and_shows_zeros() -> None:
    counts = {"train": np.array([30, 5000, 2]), "valid": np.array([3, 500, 0])}
    plot = label_distribution(["some", "most", "few"], counts)
    (axes,) = plot.figure.axes
    assert axes.get_yscale() == "log"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["most", "some", "few"]
    assert [bar.get_height() for bar in axes.containers[0]] == [5000, 30, 2]
    assert [text.get_text() for text in axes.texts] == ["5,000", "30", "2", "500", "3", "0"]
    assert plot.alt == "3 labels; in train from “most” 5,000 rows to “few” 2. Labels without a row in valid: 1."


def test_label_distribution_of_200_labels_has_few_names_and_all_counts() -> None:
    counts = np.random.default_rng(0).integers(0, 3000, 200)
    plot = label_distribution([f"l{i}" for i in range(200)], {"train": counts, "test": np.zeros(200, np.int64)})
    (axes,) = plot.figure.axes
    assert len(axes.get_xticks()) <= MOST_NAMED
    assert axes.patches[0].get_data().values.tolist() == sorted(counts, reverse=True)  # type: ignore[attr-defined]
    assert "Labels without a row in test: 200." in plot.alt


def test_text_lengths_say_what_is_cut_off() -> None:
    parts = {"train": lengths([10, 20, 30, 40]), "valid": lengths([8, 24])}
    plot = text_lengths(parts, 25)
    assert "Tokens: train mean 25.0, longest 40; valid mean 16.0, longest 24." in plot.alt
    assert "Cut at 25: train 20.0% of tokens, 50.0% of texts; valid 0.0% of tokens, 0.0% of texts." in plot.alt
    assert curve(plot, "max_seq_length 25")[:, 0].tolist() == [25, 25]
    for axes in plot.figure.axes:
        for histogram in axes.patches:
            assert sum(histogram.get_data().values) == pytest.approx(1)  # type: ignore[attr-defined]


def test_one_giant_among_short_texts_does_not_squash_the_picture() -> None:
    parts = {"train": lengths([*range(4, 44)] * 10 + [10_000])}
    tokens = text_lengths(parts, 512).figure.axes[2]
    assert tokens.get_xlim()[1] < 50
    assert tokens.get_xlabel() == "tokens (not in view: 1 longer)"
    assert "longest 10,000" in tokens.get_title(loc="left")
    assert tokens.lines[0].get_label() == "max_seq_length 512 (not in view)"
    assert text_lengths({"train": lengths([4, 5])}, 6).figure.axes[2].get_xlim()[1] > 6


CURVES: list[Callable[[np.ndarray, np.ndarray], Plot]] = [
    lambda truth, scores: precision_recall(["a"], truth[:, None], scores[:, None], {"threshold 0.5": 0.5}),
    lambda truth, scores: roc(["a"], truth[:, None], scores[:, None], {"threshold 0.5": 0.5}),
    lambda truth, scores: threshold_curve("a", truth, scores, 0.5),
    lambda truth, scores: reliability(scores, scores, truth, (0.1, 0.1)),
]


@pytest.mark.parametrize(("truth", "score"), [([0], 0.5), ([1], 0.0), ([1], 1.0), ([0, 1, 1], 0.5)])
@pytest.mark.parametrize("draw", CURVES)
def test_one_row_and_one_probability_for_all(
    draw: Callable[[np.ndarray, np.ndarray], Plot], truth: list[int], score: float
) -> None:
    assert draw(np.array(truth, np.float32), np.full(len(truth), score, np.float32)).png
