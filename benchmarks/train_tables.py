"""The tables of bench_train.py, out of the lines of its results: dicts, one a run."""

from statistics import median
from typing import Any

import numpy as np

from benchmarks.peers import markdown


def speed_table(lines: list[dict[str, Any]]) -> str:
    """Medians of the speeds and means of the scores over the seeds, a line per set and setting."""
    groups = _groups(lines)
    speeds = {key: median(line["rows a second"] for line in group) for key, group in groups.items()}
    rows = []
    for (name, side, setting), group in groups.items():
        over = {
            other: max((speed for key, speed in speeds.items() if key[:2] == (name, other)), default=None)
            for other in ("hf", "published")
        }
        speed = speeds[name, side, setting]
        row = {"set": name, "side": side, "setting": setting, "runs": len(group)}
        row |= {key: group[0][key] for key in ("rows", "epochs")} | {"rows a second": speed}
        row |= {f"times {other}": speed / each if each else None for other, each in over.items()}
        row |= {
            key: median(line[key] for line in group)
            for key in ("tokens a second", "share of limit", "ready", "first step", "total")
        }
        rows.append(row | _scores(group))
    return markdown(rows)


def trial_table(lines: list[dict[str, Any]]) -> str:
    """Medians of the speeds of the Trainer's settings."""
    rows = [
        {
            "set": name,
            "Trainer's setting": setting,
            "runs": len(group),
            "rows": group[0]["rows"],
            "rows a second": median(line["rows a second"] for line in group),
        }
        for (name, _, setting), group in _groups(lines).items()
    ]
    return markdown(sorted(rows, key=lambda row: (row["set"], -row["rows a second"])))


def score_table(lines: list[dict[str, Any]]) -> str:
    """Seconds from texts to the trained model, loading the encoder left out, and scores; a line per run."""
    keys = ("set", "side", "setting", "seed", "rows", "epochs", "total")
    return markdown([{key: line[key] for key in keys} | _scores([line]) for line in lines])


def differences(lines: list[dict[str, Any]]) -> list[str]:
    """Ours minus the Trainer's: means over the seeds that both have, with paired bootstrap intervals over the test rows."""
    told = []
    groups = _groups([line for line in lines if "predicted" in line])
    for (name, side, setting), group in groups.items():
        others = {line["seed"]: line for key, each in groups.items() if key[:2] == (name, "hf") for line in each}
        pairs = [(line, others[line["seed"]]) for line in group if line["seed"] in others]
        if side != "ours" or not pairs:
            continue
        for metric, (gain, ends) in _gains(pairs).items():
            told.append(
                f"{name}, {setting}: {metric} {gain:+.4f} over the Trainer's, 95 % interval {ends[0]:+.4f} to {ends[1]:+.4f} "
                f"({len(pairs)} seeds)"
            )
    return told


def _groups(lines: list[dict[str, Any]]) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault((line["set"], line["side"], line["setting"]), []).append(line)
    return groups


def _scores(group: list[dict[str, Any]]) -> dict[str, str | None]:
    """Accuracy and macro-F1 as mean and standard deviation; nothing where the runs did not score."""
    from sklearn.metrics import accuracy_score, f1_score

    scored = [(line["true"], line["predicted"]) for line in group if "predicted" in line]
    values = {
        "accuracy": [accuracy_score(*each) for each in scored],
        "macro-F1": [f1_score(*each, average="macro") for each in scored],
    }
    return {name: _mean(each) if each else None for name, each in values.items()}


def _mean(values: list[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{spread}"


def _gains(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, tuple[float, list[float]]]:
    """Gains of the first ones of some pairs of runs, and the ends of their intervals."""
    from metrics import intervals, resample, score_decisions
    from tasks import Task

    true = np.array(pairs[0][0]["true"])
    labels = [str(label) for label in range(int(true.max()) + 1)]
    task = Task("binary" if len(labels) == 2 else "multiclass", labels)
    predicted = [np.array(line["predicted"]) for pair in pairs for line in pair]
    flat = np.full((len(true), len(labels)), 1 / len(labels))  # probabilities, which these metrics do not look at
    draws = resample(task, true, flat, flat, predicted)
    scores = [score_decisions(task, true, each) for each in predicted]
    drawn = {
        name: np.mean([ours[name] - theirs[name] for ours, theirs in zip(draws[::2], draws[1::2], strict=True)], axis=0)
        for name in ("accuracy", "f1" if task.kind == "binary" else "macro_f1")
    }
    return {
        name: (
            float(np.mean([ours[name] - theirs[name] for ours, theirs in zip(scores[::2], scores[1::2], strict=True)])),
            ends,
        )
        for name, ends in intervals(drawn).items()
    }


def tables(lines: list[dict[str, Any]], time_to_score: bool) -> str:
    """All that the results tell."""
    trials, runs = ([line for line in lines if (line["side"] == "trial") is trial] for trial in (True, False))
    parts = [trial_table(trials)] if trials and not time_to_score else []
    if runs:
        parts += [score_table(runs) if time_to_score else speed_table(runs), *differences(runs)]
    return "\n\n".join(parts)
