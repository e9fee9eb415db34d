"""evaluation.py and report.py: a trained model scored on a table, and the page that tells of it."""

import html.parser
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, MakeTable, tiny_settings

from config import DataError
from evaluation import evaluate
from predict import load_classifier
from spec import EncoderPaths
from train import Result, train

EVIL = '<script>document.title = "pwned"</script><img src=x onerror="document.title=1">'


def results(directory: Path) -> Path:
    """The one folder of results in `directory`."""
    [folder] = directory.iterdir()
    return folder


def test_evaluating_the_test_table_again_gives_the_scores_of_the_training(trained: Result, tmp_path: Path) -> None:
    test = str(trained.run_directory.parent / "test.csv")
    folder, report = evaluate(str(trained.run_directory), test, str(tmp_path))
    expected = trained.metrics["test"]
    numbers = {name: value for name, value in expected.items() if isinstance(value, int | float)}
    assert {name: report["test"][name] for name in numbers} == pytest.approx(numbers, abs=1e-6)
    assert report["test"]["confusion_matrix"] == expected["confusion_matrix"]
    assert report["test"]["intervals"]["f1"] == pytest.approx(expected["intervals"]["f1"], abs=1e-6)
    assert (report["threshold"], report["labels"]) == (trained.metrics["threshold"], ["negative", "positive"])
    assert json.loads((folder / "metrics.json").read_text()) == report
    assert {path.name for path in folder.iterdir()} == {"metrics.json", "plots", "report.html", "test_predictions.csv"}
    ours = pd.read_csv(folder / "test_predictions.csv", keep_default_na=False)
    theirs = pd.read_csv(trained.run_directory / "test_predictions.csv", keep_default_na=False)
    assert ours["predicted_label"].tolist() == theirs["predicted_label"].tolist()
    np.testing.assert_allclose(ours["probability"], theirs["probability"], atol=1e-6)


def test_results_lie_in_the_run_directory_and_a_second_evaluation_beside_the_first(
    trained: Result, tmp_path: Path
) -> None:
    run = shutil.copytree(trained.run_directory, tmp_path / "run")
    for model in (run, run / "model"):
        folder, _ = evaluate(str(model), str(trained.run_directory.parent / "test.csv"))
        assert folder.parent == run / "evaluations"
        page = (folder / "report.html").read_text(encoding="utf-8")
        assert f"load_classifier(&#39;{run}&#39;)" in page
    assert len(list((run / "evaluations").glob("test-2*"))) == 2


def test_rows_with_labels_that_the_model_does_not_know_are_counted_and_left_out(
    trained: Result, tmp_path: Path, table: MakeTable, capsys: pytest.CaptureFixture[str]
) -> None:
    data = table([("it is good", "positive"), ("the worst", "negative"), ("so so", "mixed"), ("it is bad", "negative")])
    _, report = evaluate(str(trained.run_directory), data, str(tmp_path / "out"))
    note = f"{data}: label 'mixed' in 1 row (3) is unknown to the model: left out of the scores"
    assert report["notes"] == [note]
    assert report["test"]["examples"] == 3
    assert f"note: {note}" in capsys.readouterr().out
    page = (results(tmp_path / "out") / "report.html").read_text()
    assert "label &#39;mixed&#39; in 1 row (3) is unknown to the model" in page


def test_one_class_alone_is_scored_as_far_as_it_can_be(trained: Result, tmp_path: Path, table: MakeTable) -> None:
    _, report = evaluate(str(trained.run_directory), table([("it is good", "negative")] * 3), str(tmp_path / "out"))
    assert "roc_auc" not in report["test"]
    assert "average_precision" not in report["test"]
    assert report["test"]["recall"] == 0.0
    assert (results(tmp_path / "out") / "report.html").exists()


def test_a_table_that_does_not_fit_the_model_is_told(trained: Result, tmp_path: Path, table: MakeTable) -> None:
    model, data = str(trained.run_directory), table([("it is good", "positive"), ("bad", "negative")])
    with pytest.raises(DataError, match="no column 'body': the table has 'text', 'label'; set text_column"):
        evaluate(model, data, str(tmp_path / "out"), text_column="body")
    pd.read_csv(data).assign(second="x").to_csv(data, index=False)
    with pytest.raises(DataError, match="the model takes one text a row, and no pairs"):
        evaluate(model, data, str(tmp_path / "out"), text_pair_column="second")
    assert not (tmp_path / "out").exists()


def test_a_model_without_its_run_directory_is_evaluated_by_what_it_carries(
    trained: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = shutil.copytree(trained.run_directory / "model", tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    _, report = evaluate(str(moved), str(trained.run_directory.parent / "test.csv"))
    assert report["test"]["f1"] == pytest.approx(trained.metrics["test"]["f1"])
    assert f"load_classifier(&#39;{moved}&#39;)" in (results(tmp_path / "evaluations") / "report.html").read_text()
    assert len(list((tmp_path / "evaluations").iterdir())) == 1


def test_rows_that_the_model_was_trained_on_are_told(trained: Result, tmp_path: Path) -> None:
    tables = trained.run_directory.parent
    notes = {
        name: evaluate(str(trained.run_directory), str(tables / name), str(tmp_path))[1]["notes"]
        for name in ("train.csv", "test.csv")
    }
    flattered = "the model was trained on these rows, or most of them: its scores on them flatter it"
    assert [name for name in notes if flattered in notes[name]] == ["train.csv"]


def test_the_command_prints_labels_scores_and_where_to_look(trained: Result, tmp_path: Path) -> None:
    arguments = ["--model", str(trained.run_directory), "--data", str(trained.run_directory.parent / "test.csv")]
    command = [sys.executable, "evaluation.py", *arguments, "--output_dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"positive +\d+ +\d+ +[01]\.\d+ +[01]\.\d+ +0\.\d+", done.stdout)
    assert re.search(r"f1 +0\.\d{4}  \(95 % interval 0\.\d{4} to [01]\.\d{4}\)  at 0\.5: 0\.\d{4}", done.stdout)
    assert f"Report: {results(tmp_path) / 'report.html'}" in done.stdout


# The report


@pytest.fixture(scope="module")
def evil_run(tiny_paths: EncoderPaths, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on texts and labels that try to be code."""
    folder = tmp_path_factory.mktemp("evil")
    rows = [(f"{EVIL} good {i} {'x' * 700 if i == 0 else ''}", f"a|b`{EVIL}" if i % 3 else "$x_1$") for i in range(150)]
    pd.DataFrame(rows, columns=["text", "label"]).to_csv(folder / "t.csv", index=False)
    train(tiny_settings(tiny_paths, folder, data=str(folder / "t.csv"), valid_split=0.4, epochs=1))
    return folder / "run"


class Page(html.parser.HTMLParser):
    """Tags with their attributes."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_texts_and_labels_are_escaped_and_nothing_is_loaded_from_elsewhere(evil_run: Path) -> None:
    page = Page(evil_run / "report.html")
    assert len(page.all("script")) == 1
    assert all((image["src"] or "").startswith("data:image/png;base64,") for image in page.all("img"))
    assert not page.all("link")
    assert not page.all("iframe")
    assert all((anchor["href"] or "").startswith("#") for anchor in page.all("a"))
    assert [meta["content"] for meta in page.all("meta") if "http-equiv" in meta] == [
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    ]
    assert "onerror" not in str([attributes.keys() for _, attributes in page.tags])
    source = (evil_run / "report.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;document.title" in source


def test_every_picture_is_told_in_words_and_every_section_can_be_reached(evil_run: Path) -> None:
    page = Page(evil_run / "report.html")
    assert len(page.all("img")) == 8
    assert all(len(image["alt"] or "") > 30 for image in page.all("img"))
    identifiers = {f"#{attributes['id']}" for _, attributes in page.tags if "id" in attributes}
    assert {anchor["href"] for anchor in page.all("a")} <= identifiers
    assert page.all("html") == [{"lang": "en"}]
    assert all(region["tabindex"] == "0" for region in page.all("div") if region.get("role") == "region")


def test_the_model_card_keeps_labels_on_their_lines(evil_run: Path) -> None:
    card = (evil_run / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "<script>" not in card.replace("\\<", "")
    tables = [line for line in card.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in tables[-4:]}) == 1
    for part in ("## Data", "90 rows of t.csv", "## Metrics", "## Intended use and limits", "## Licences", "threshold"):
        assert part in card


def test_the_headline_is_the_numbers_of_the_test_rows_in_words(trained: Result) -> None:
    page = (trained.run_directory / "report.html").read_text(encoding="utf-8")
    test = trained.metrics["test"]
    low, high = test["intervals"]["f1"]
    assert "On 152 test rows that the model was not trained on, it finds" in page
    assert f"{test['recall']:.1%} of those labelled &#39;positive&#39; (recall)" in page
    assert f"F1 {test['f1']:.3f} (95 % interval {low:.3f} to {high:.3f})" in page
    assert f"The threshold is {trained.metrics['threshold']:.3f}, chosen on the validation rows for f1" in page


def test_mistakes_are_shown_the_surest_first(trained: Result) -> None:
    predictions = pd.read_csv(trained.run_directory / "test_predictions.csv", keep_default_na=False)
    wrong = predictions[predictions["label"] != predictions["predicted_label"]]
    unlikely = [wrong[f"probability_{label}"].iloc[i] for i, label in enumerate(wrong["label"])]
    surest = wrong.index.tolist()[int(np.argmin(unlikely))]
    page = (trained.run_directory / "report.html").read_text(encoding="utf-8")
    first = page.split("The most confident mistakes", 1)[1].split("<tbody>", 1)[1].split("</tr>", 1)[0]
    assert f'<td class="number">{surest + 1}</td>' in first


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium: the page is not tried in a browser")
def test_in_a_browser_the_table_sorts_and_no_text_becomes_code(evil_run: Path, tmp_path: Path) -> None:
    """A click on the column `rows`, twice; what the page then holds is read back."""
    clicks = """<script>
    const head = document.querySelectorAll("table.sortable th")[1], order = () => [...document.querySelectorAll(
      "table.sortable tbody tr")].map(row => row.cells[1].textContent).join(" ");
    const seen = [];
    for (let i = 0; i < 2; i++) {
      head.querySelector("button").click();
      seen.push(head.getAttribute("aria-sort") + ": " + order());
    }
    const wide = document.documentElement.scrollWidth > window.innerWidth;
    document.body.dataset.seen = JSON.stringify({seen, title: document.title, wide});
    </script></body>"""
    page = (evil_run / "report.html").read_text(encoding="utf-8").replace("</body>", clicks)
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    options += ["--disable-component-update", "--disable-sync", "--disable-quic", "--window-size=400,800", "--dump-dom"]
    with tempfile.TemporaryDirectory() as profile:
        command = [str(CHROMIUM), *options, f"--user-data-dir={profile}", f"file://{tmp_path / 'page.html'}"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    [body] = Page.all(_parsed(done.stdout, tmp_path), "body")
    told = json.loads(body["data-seen"] or "")
    assert told == {"seen": ["descending: 40 20", "ascending: 20 40"], "title": "run: report", "wide": False}


def _parsed(source: str, folder: Path) -> Page:
    (folder / "dom.html").write_text(source, encoding="utf-8")
    return Page(folder / "dom.html")


def test_without_any_scored_rows_the_report_still_tells_of_the_data(tiny_paths: EncoderPaths, tmp_path: Path) -> None:
    result = train(tiny_settings(tiny_paths, tmp_path, valid_split=0, epochs=1))
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "No rows were scored: there are neither validation nor test rows." in page
    assert result.metrics["threshold"] == 0.5
    assert result.metrics["notes"] == ["no validation rows: no calibration, and 0.5 as the threshold"]
    assert load_classifier(tmp_path / "run").decision.threshold.tolist() == [0.5]
