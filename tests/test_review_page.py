"""review_page.py: the page on which suspected labels are decided, used in a browser, and its decisions read back."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from config import DataError
from review_page import ReviewPage, Verdict, read_decisions, write_review_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: the page is not tried in a browser")
EVIL = '</script><img src=x onerror="document.title=1"><!-- <script>document.title = 2</script>\u2028\r\n "&amp;'
LABELS = ["<b>", "a,b", 'say "no"', "Ünïcode", "__proto__", "constructor"]
FINGERPRINT = "ab" * 32


def page_of(multilabel: bool = False, rows: int = 6, separator: str = "|") -> ReviewPage:
    """A page whose i-th suspect is row 10 i + 1, given the i-th label, with the next one as the suggestion."""
    given = [LABELS[i % len(LABELS)] for i in range(rows)]
    suggested = [LABELS[(i + 1) % len(LABELS)] for i in range(rows)]
    if multilabel:
        given = [separator.join([label, LABELS[3]]) if label != LABELS[3] else "" for label in given]
    suspects = pd.DataFrame(
        {
            "row": [10 * i + 1 for i in range(rows)],
            "given_label": given,
            "suggested_label": suggested,
            "quality": [i / max(rows, 1) for i in range(rows)],
            "text": [f"{EVIL} text {i}" for i in range(rows)],
            "text_pair": [f"pair {i}" for i in range(rows)],
            "reason": [None if i else "<i>near duplicate</i>" for i in range(rows)],
        }
    )
    return ReviewPage(f"{EVIL}/table.csv", FINGERPRINT, LABELS, multilabel, suspects, separator)


def used(page: ReviewPage, folder: Path, script: str, before: str = "") -> tuple[dict[str, object], str]:
    """What a script, run at the end of the page, leaves in `told`, and the file of decisions. `press` presses keys, `$`
    finds an element; `before` runs before the page's own script."""
    source = folder / "review.html"
    write_review_page(source, page)
    helpers = """
    const $ = selector => document.querySelector(selector), told = {};
    const press = (...keys) => keys.forEach(key => (document.activeElement ?? document.body).dispatchEvent(
      new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true})));
    const state = () => [$("#decided").textContent, $("#place").textContent, $("#state").textContent].join("; ");
    """
    end = "document.body.dataset.told = JSON.stringify({told, csv: hubtuneReview.csv(), title: document.title});"
    driver = f"<script>(async () => {{ {helpers} {script} \n {end} }})();</script></body>"
    content = source.read_text(encoding="utf-8").replace("</head>", f"<script>{before}</script></head>")
    source.write_text(content.replace("</body>", driver), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    options += ["--disable-component-update", "--disable-sync", "--window-size=400,800", "--virtual-time-budget=3000"]
    command = [str(CHROMIUM), *options, f"--user-data-dir={folder / 'profile'}", "--dump-dom", f"file://{source}"]
    dom = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    found = re.search(r'data-told="([^"]*)"', dom)
    assert found, dom[-500:]
    left = json.loads(html.unescape(found[1]))
    assert left["title"] == "table.csv: review of labels"  # no text became code
    return left["told"], left["csv"]


def read(csv: str, folder: Path, multilabel: bool = False, separator: str = "|") -> list[Verdict]:
    path = folder / "decisions.csv"
    path.write_text(csv, encoding="utf-8", newline="")
    return read_decisions(str(path), LABELS, FINGERPRINT, range(1, 100), multilabel=multilabel, separator=separator)


# In the browser


@in_a_browser
def test_what_is_decided_by_keys_is_exported_and_read_back(tmp_path: Path) -> None:
    script = """
    told.before = state();
    press("k", "r", "d", "5", "u", "1", "ArrowRight", "ArrowLeft", "ArrowLeft", "j", "l");
    told.after = state();
    told.undecided = ($("#undecided").click(), state());
    """
    told, csv = used(page_of(), tmp_path, script)
    assert told["before"] == "0 of 6 decided; Row 1, 1 of 6; "
    assert told["after"] == "4 of 6 decided; Row 31, 4 of 6; Decided: relabel to <b>"
    assert told["undecided"] == "4 of 6 decided; Row 41, 1 of 2; "
    assert csv.split("\r\n")[:3] == [
        "row,decision,label,given_label,table_sha256",
        f"1,keep,<b>,<b>,{FINGERPRINT}",
        f'11,relabel,"say ""no""","a,b",{FINGERPRINT}',
    ]
    assert read(csv, tmp_path) == [
        Verdict(1, "keep", "<b>"),
        Verdict(11, "relabel", 'say "no"'),
        Verdict(21, "drop", None),
        Verdict(31, "relabel", "<b>"),
    ]


@in_a_browser
def test_several_labels_of_a_row_are_switched_one_by_one_and_taken_together(tmp_path: Path) -> None:
    script = """
    press("5", "1", "Enter", "k", "r", "4", "Enter");
    told.after = state();
    told.pressed = [...document.querySelectorAll("[data-place]")].map(chip => chip.ariaPressed).join();
    told.groups = [...$("#group").options].map(option => option.textContent);
    $("#group").value = $("#group").options[1].value;
    $("#group").dispatchEvent(new Event("change"));
    told.filtered = $("#list").children.length;
    """
    told, csv = used(page_of(multilabel=True, separator=" / "), tmp_path, script)
    assert told["after"] == "4 of 6 decided; Row 41, 5 of 6; "
    assert told["pressed"] == "false,false,false,true,true,false"
    assert told["groups"][:2] == ["all (6)", "remove Ünïcode (4)"]  # type: ignore[index]
    assert told["filtered"] == 4
    assert read(csv, tmp_path, multilabel=True, separator=" / ") == [
        Verdict(1, "relabel", "Ünïcode / __proto__"),
        Verdict(11, "keep", "a,b / Ünïcode"),
        Verdict(21, "relabel", "Ünïcode"),
        Verdict(31, "relabel", "Ünïcode"),
    ]


@in_a_browser
def test_texts_and_labels_are_shown_as_they_are_and_fit_a_narrow_window(tmp_path: Path) -> None:
    script = """
    told.texts = [...document.querySelectorAll(".text")].map(text => text.textContent);
    told.facts = $("#facts").innerText.split(/\\n+/);
    told.images = document.images.length;
    told.wide = document.documentElement.scrollWidth > window.innerWidth;
    told.nameless = [...document.querySelectorAll("button, select, meter, progress")].filter(one => !(
      one.textContent.trim() || one.ariaLabel || one.labels?.length || one.getAttribute("aria-labelledby"))).length;
    """
    told, _ = used(page_of(), tmp_path, script)
    assert told["texts"] == [f"{EVIL} text 0".replace("\r\n", "\n"), "pair 0"]
    facts = told["facts"]
    assert isinstance(facts, list)
    assert [facts[1], facts[3], facts[-1]] == ["<b>", "a,b", "<i>near duplicate</i>"]
    assert (told["images"], told["wide"], told["nameless"]) == (0, False, 0)


@in_a_browser
def test_decisions_survive_a_reload_and_an_earlier_file_is_taken_in(tmp_path: Path) -> None:
    script = """
    if (!sessionStorage.reloaded) {
      press("k", "d");
      sessionStorage.reloaded = "yes";
      location.reload();
      return;
    }
    told.reloaded = state();
    const take = async (...lines) => {
      const chosen = new DataTransfer(), head = "row,decision,label,given_label,table_sha256\\n";
      chosen.items.add(new File(["\\ufeff" + head + lines.join("\\n")], "old.csv"));
      $("#status").textContent = "";
      $("#file").files = chosen.files;
      $("#file").dispatchEvent(new Event("change"));
      while (!$("#status").textContent) await new Promise(done => setTimeout(done, 20));
      return $("#status").textContent;
    };
    const end = "," + "ab".repeat(32), no = '"say ' + '""no"' + '""';
    told.taken = await take("11,relabel," + no + ',"a,b"' + end, "21,drop,,x" + end, "91,drop,,x" + end);
    told.after = state();
    told.other = await take("31,drop,,x,another");
    told.broken = await take('31,"drop');
    told.label = await take("31,relabel,zzz,x" + end);
    told.same = state() === told.after;
    """
    told, csv = used(page_of(), tmp_path, script)
    assert told.pop("reloaded") == "2 of 6 decided; Row 21, 3 of 6; "
    assert told == {
        "taken": "Imported 3 decisions; 1 of them in place of another. Held and exported as well: 1 decision about rows "
        "that are not listed here.",
        "after": "3 of 6 decided; Row 21, 3 of 6; Decided: drop",
        "other": "old.csv is not imported: row 1: decisions about another table.",
        "broken": "old.csv is not imported: line 2: broken quoting.",
        "label": "old.csv is not imported: row 1: unknown label zzz.",
        "same": True,
    }
    assert [(one.row, one.decision) for one in read(csv, tmp_path)] == [
        (1, "keep"),
        (11, "relabel"),
        (21, "drop"),
        (91, "drop"),
    ]


@in_a_browser
def test_where_the_browser_keeps_nothing_the_page_works_and_says_so(tmp_path: Path) -> None:
    forbidden = "Object.defineProperty(window, 'localStorage', {get() { throw new Error('forbidden'); }});"
    told, csv = used(page_of(), tmp_path, 'told.warned = !$("#unkept").hidden; press("d");', forbidden)
    assert told["warned"] is True
    assert read(csv, tmp_path) == [Verdict(1, "drop", None)]


@in_a_browser
def test_thousands_of_rows_are_listed_in_parts_and_more_than_nine_labels_in_a_box(tmp_path: Path) -> None:
    many = page_of(rows=5000)
    page = ReviewPage(many.table, FINGERPRINT, [*LABELS, *"vwxyz"], False, many.suspects)
    script = """
    told.listed = $("#list").children.length;
    told.digits = (press("1"), state());
    $("#later").click();
    $("#list").lastElementChild.querySelector("button").click();
    told.clicked = state();
    $("#other").value = 10;
    $("#other").focus();
    press("k", "Enter");
    told.chosen = state();
    """
    told, csv = used(page, tmp_path, script)
    assert told == {
        "listed": 100,
        "digits": "0 of 5,000 decided; Row 1, 1 of 5,000; ",
        "clicked": "0 of 5,000 decided; Row 1991, 200 of 5,000; ",
        "chosen": "1 of 5,000 decided; Row 2001, 201 of 5,000; ",
    }
    assert csv.splitlines()[1] == f'1991,relabel,z,"a,b",{FINGERPRINT}'


def test_a_page_without_suspects_says_so(tmp_path: Path) -> None:
    write_review_page(tmp_path / "review.html", page_of(rows=0))
    source = (tmp_path / "review.html").read_text(encoding="utf-8")
    assert "there is nothing to review" in source
    assert "<script" not in source


def test_nothing_is_loaded_from_elsewhere_and_no_text_ends_the_data(tmp_path: Path) -> None:
    write_review_page(tmp_path / "review.html", page_of())
    source = (tmp_path / "review.html").read_text(encoding="utf-8")
    assert source.count("<script") == source.count("</script>") == 2
    assert "<!-- " not in source
    assert "\u2028" not in source.split('id="data"')[1]
    assert not re.search(r'(src|href)="', source)
    assert "default-src 'none'" in source


# Decisions read back


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (["1,maybe,<b>,<b>,SHA"], "row 1, column 'decision': holds 'maybe'; write keep, relabel or drop"),
        (["1,relabel,c,<b>,SHA"], "row 1, column 'label': unknown label 'c'; the task has '<b>', 'a,b'"),
        (["1,relabel,,<b>,SHA"], "row 1, column 'label': unknown label ''"),
        (["1,drop,,<b>,SHA", "100,drop,,<b>,SHA"], "row 2, column 'row': the table has no row '100'"),
        (["1.0,drop,,<b>,SHA"], "row 1, column 'row': the table has no row '1.0'"),
        (
            ["7,drop,,<b>,SHA", "7,drop,,<b>,SHA"],
            "row 2, column 'row': row 7 of the table is decided twice, in row 1 alr",
        ),
        (
            ["1,drop,,<b>,cdcd"],
            "row 1, column 'table_sha256': decisions about another table, .* ('cdcd', this one has 'abab",
        ),
        (["1,drop,<b>,<b>,SHA"], "row 1, column 'label': holds '<b>' in a row to drop; leave it empty"),
        (
            ["1,keep,__proto__,<b>,SHA"],
            "row 1, column 'label': holds '__proto__', which is not the given label to keep",
        ),
    ],
)
def test_a_line_that_is_no_decision_is_refused_with_its_place(lines: list[str], problem: str, tmp_path: Path) -> None:
    csv = "\n".join(["row,decision,label,given_label,table_sha256", *lines]).replace("SHA", FINGERPRINT)
    pattern = re.escape(f"{tmp_path / 'decisions.csv'}: {problem}").replace(r"\.\*", ".*")
    with pytest.raises(DataError, match=pattern) as told:
        read(csv, tmp_path)
    assert "\n" not in str(told.value)


def test_a_missing_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column 'decision': it has 'row', 'label'; give the file that the review"):
        read("row,label\n1,x\n", tmp_path)


def test_labels_of_several_are_checked_one_by_one(tmp_path: Path) -> None:
    def verdicts(label: str, decision: str = "relabel") -> list[Verdict]:
        head = "row,decision,label,given_label,table_sha256"
        return read(f'{head}\n1,{decision},"{label}","<b>|a,b",{FINGERPRINT}', tmp_path, multilabel=True)

    assert verdicts("") == [Verdict(1, "relabel", "")]
    assert verdicts("__proto__|<b>") == [Verdict(1, "relabel", "__proto__|<b>")]
    assert verdicts("a,b|<b>", "keep") == [Verdict(1, "keep", "a,b|<b>")]
    with pytest.raises(DataError, match="row 1, column 'label': unknown label 'joy'"):
        verdicts("a,b|joy")
    with pytest.raises(DataError, match="column 'label': holds a label twice"):
        verdicts("a,b|a,b")
