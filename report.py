"""What a reader sees of a run: report.html, one page that needs nothing beside it, and MODEL_CARD.md."""

import base64
import shlex
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import jinja2
import yaml

from decision import HALF, Decision
from known_encoders import licence_of
from looks import least_certain, mistakes
from metrics import HEADLINE
from plots import Plot
from results import Scored
from run_directory import write_atomically

_SHOWN_ROWS = 20
_SHOWN_CHARACTERS = 600
_NAMES = {
    "f1": "F1",
    "macro_f1": "macro-F1",
    "micro_f1": "micro-F1",
    "weighted_f1": "weighted F1",
    "mcc": "Matthews correlation (MCC)",
    "roc_auc": "ROC-AUC",
    "loss": "log loss",
    "precision_at_recall_50": "precision at recall 0.5",
}
_PARTS = {"train": "training", "valid": "validation", "test": "test"}


@dataclass(frozen=True)
class Facts:
    """All that the report and the model card tell of; `metrics` is the content of metrics.json."""

    name: str
    decision: Decision
    scored: dict[str, Scored]  # by "valid" and "test"
    metrics: dict[str, Any]
    plots: list[Plot]
    config: dict[str, Any]
    model: Path

    @property
    def saved(self) -> Path:
        """What load_classifier takes: the run directory, or the SavedModel where there is none around it."""
        return self.model.parent if (self.model.parent / "config.yaml").exists() else self.model

    @property
    def shown(self) -> str | None:
        """The part that the headline is about: the test rows where there are some, else the validation rows."""
        return next((name for name in ("test", "valid") if name in self.scored), None)


def write_report(path: Path, facts: Facts) -> None:
    """Writes the page, its plots and styles inside, its texts escaped."""
    rows = {}
    if facts.shown is not None:
        shown = facts.scored[facts.shown]
        rows["The most confident mistakes"] = mistakes(facts.decision, shown, _SHOWN_ROWS)
        rows["The least certain rows"] = least_certain(facts.decision, shown, _SHOWN_ROWS)
    page = _TEMPLATES.get_template("report.html.jinja").render(
        **_common(facts),
        plots=[(plot, base64.b64encode(plot.png).decode()) for plot in facts.plots],
        rows={title: frame.to_dict("records") for title, frame in rows.items()},
        config=yaml.safe_dump(facts.config, sort_keys=False, allow_unicode=True),
        environment=yaml.safe_dump(facts.metrics["environment"], sort_keys=False, allow_unicode=True),
    )
    write_atomically(path, page)


def write_model_card(path: Path, facts: Facts) -> None:
    """Writes what whoever uses the model should know of it, in Markdown."""
    card = _TEMPLATES.get_template("model_card.md.jinja").render(
        **_common(facts),
        config=facts.config,
        licence=licence_of(facts.config["encoder"]),
        data=Path(str(facts.config["data"]).rstrip("/")).name,
        today=date.today().isoformat(),
    )
    write_atomically(path, card)


def _common(facts: Facts) -> dict[str, Any]:
    task = facts.decision.task
    thresholds = facts.decision.threshold.tolist()
    return {
        "facts": facts,
        "task": task,
        "headline": headline(facts),
        "scores": _scores(facts),
        "by_label": facts.metrics[facts.shown]["by_label"] if facts.shown else {},
        "thresholds": dict(zip(task.labels, thresholds, strict=True)) if task.kind == "multilabel" else {},
        "part": _PARTS.get(facts.shown or "", ""),
        "pairs": bool(facts.config.get("text_pair_column")),
    }


# The headline


def headline(facts: Facts) -> list[str]:
    """The main numbers in sentences."""
    if facts.shown is None:
        return ["No rows were scored: there are neither validation nor test rows."]
    values, task = facts.metrics[facts.shown], facts.decision.task
    rows = f"On {values['examples']:,} {_PARTS[facts.shown]} rows that the model was not trained on"
    if "train" not in facts.metrics:
        rows = f"On {values['examples']:,} rows of {Path(facts.metrics['data']).name}"
    if task.kind == "binary":
        positive = _shorten(task.labels[1], 60)
        found = (
            f"it finds {values['recall']:.1%} of those labelled {positive!r} (recall), and {values['precision']:.1%} of "
            f"those that it labels so are right (precision): F1 {_with_interval(values, 'f1')}"
        )
    elif task.kind == "multiclass":
        mean = _with_interval(values, "macro_f1")
        found = f"its label is right in {_share(values, 'accuracy')}; the mean F1 of the labels is {mean}"
    else:
        means = f"micro-F1 {_with_interval(values, 'micro_f1')}, macro-F1 {_with_interval(values, 'macro_f1')}"
        shares = f"{values['micro_recall']:.1%} of the labels, and {values['micro_precision']:.1%}"
        found = f"it finds {shares} of those that it gives are right: {means}"
    sentences = [f"{rows}, {found}."]
    if task.kind != "multilabel":
        most = max(values["by_label"], key=lambda label: values["by_label"][label]["support"])
        always = values["by_label"][most]["support"] / values["examples"]
        right = "" if task.kind == "multiclass" else f"It is right in {_share(values, 'accuracy')} of the rows. "
        sentences.append(f"{right}To answer {_shorten(most, 60)!r} every time would be right in {always:.1%}.")
    if "at_half" in values:
        sentences.append(_about_threshold(facts, values))
    sentences.append(_about_calibration(facts, values))
    return sentences


def _with_interval(values: dict[str, Any], name: str, form: str = ".3f") -> str:
    told = f"{values[name]:{form}}"
    if name not in values["intervals"]:
        return told
    low, high = values["intervals"][name]
    return f"{told} (95 % interval {low:{form}} to {high:{form}})"


def _share(values: dict[str, Any], name: str) -> str:
    return _with_interval(values, name, ".1%")


def _about_threshold(facts: Facts, values: dict[str, Any]) -> str:
    name = HEADLINE[facts.decision.task.kind][0]
    thresholds, half = facts.decision.threshold, values["at_half"][name]
    if (thresholds == HALF).all():
        return "The threshold is 0.5."
    is_what = f"is {thresholds[0]:.3f}"
    if len(thresholds) > 1:
        is_what = f"of a label lies between {thresholds.min():.3f} and {thresholds.max():.3f}"
    aim = f" for {facts.metrics['threshold_metric']}" if facts.metrics["threshold_metric"] else ""
    gain = f"{values[name] - half:+.3f}"
    if name in values["at_half"]["gain_intervals"]:
        gain += " (95 % interval {:+.3f} to {:+.3f})".format(*values["at_half"]["gain_intervals"][name])
    return (
        f"The threshold {is_what}, chosen on the validation rows{aim}; at 0.5 {_NAMES[name]} would be {half:.3f}, a difference "
        f"of {gain}."
    )


def _about_calibration(facts: Facts, values: dict[str, Any]) -> str:
    after, before = values["expected_calibration_error"], values["uncalibrated"]["expected_calibration_error"]
    told = f"Its probabilities are off by {after:.1%} on average (expected calibration error)"
    earlier = f"before calibration it was {before:.1%}" if facts.decision.calibrated else "they are not calibrated"
    return f"{told}; {earlier}."


def _scores(facts: Facts) -> list[dict[str, Any]]:
    """Lines of the table of scores: one for each metric, with a value of each part that was scored."""
    if facts.shown is None:
        return []
    names = [name for name, value in facts.metrics[facts.shown].items() if isinstance(value, float)]
    first = (*HEADLINE[facts.decision.task.kind], "expected_calibration_error")
    lines = []
    for name in sorted(names, key=lambda name: first.index(name) if name in first else len(first)):
        line: dict[str, Any] = {"name": _NAMES.get(name, name.replace("_", " ")), "values": {}}
        for part in facts.scored:
            values = facts.metrics[part]
            line["values"][part] = {
                "value": values.get(name),
                "interval": values["intervals"].get(name),
                "half": values.get("at_half", {}).get(name),
            }
        lines.append(line)
    return lines


def _shorten(text: str, most: int = _SHOWN_CHARACTERS) -> str:
    """The beginning of a long text, and how long it is."""
    return text if len(text) <= most else f"{text[:most]} … ({len(text):,} characters)"


def _markdown(text: str) -> str:
    """Text of the user's on one line, such that Markdown and HTML take nothing in it for their own."""
    escaped = "".join(f"\\{letter}" if letter in "\\`*_[]<>#|&$~" else letter for letter in str(text))
    return " ".join(escaped.split())


_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=lambda name: name is not None and ".html" in name,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters |= {"shorten": _shorten, "markdown": _markdown, "quoted": shlex.quote, "literal": repr}
