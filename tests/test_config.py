"""config.py: one validated path from YAML, command line and dict."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from pydantic import ValidationError

from command_line import parse_command_line
from config import Config, ConfigError, make_config
from docs.config_reference import config_reference


def parse(*arguments: str) -> Config:
    return parse_command_line(list(arguments))[0]


def test_command_line_beats_yaml_beats_default(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("data: from_yaml.csv\nepochs: 7\nbatch_size: 8\n")
    config = parse("--config", str(file), "--epochs", "9")
    assert (config.data, config.epochs, config.batch_size, config.dropout) == (
        "from_yaml.csv",
        9,
        8,
        Config(data="-").dropout,
    )


@pytest.mark.parametrize("spelling", [["--trainable", "false"], ["--trainable=False"], ["--trainable=0"]])
def test_booleans_are_read_as_people_and_sweeps_write_them(spelling: list[str]) -> None:
    assert parse("--data=x.csv", *spelling).trainable is False
    assert parse("--data=x.csv", "--trainable").trainable is True


def test_yaml_scientific_notation_without_a_dot_is_a_number(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("data: x.csv\nlearning_rate: 3e-5\n")
    assert yaml.safe_load(file.read_text())["learning_rate"] == "3e-5"  # what YAML makes of it
    assert parse("--config", str(file)).learning_rate == 3e-5


def test_null_gives_a_key_its_default(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("data: x.csv\nvalid_data: v.csv\nepochs: 9\ndropout: null\n")
    config = parse("--config", str(file), "--valid_data", "null", "--epochs=null")
    assert (config.valid_data, config.epochs, config.dropout) == (None, 3, 0.1)


def test_tags_are_split_at_commas() -> None:
    assert parse("--data=x", "--wandb_tags=a, b,").wandb_tags == ["a", "b"]


def test_the_written_yaml_reads_back_as_the_same_config(tmp_path: Path) -> None:
    config = parse("--data=x.csv", "--learning_rate=3e-5", "--wandb_tags=a,b", "--valid_split=0.25")
    (tmp_path / "c.yaml").write_text(config.to_yaml())
    assert parse("--config", str(tmp_path / "c.yaml")) == config


def test_a_bad_value_is_blamed_on_where_it_came_from(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("data: x.csv\ndropout: 2\n")
    with pytest.raises(ConfigError, match=r"c\.yaml: dropout=2: .*; command line: epochs='0': "):
        parse("--config", str(tmp_path / "c.yaml"), "--epochs", "0")


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Config(data="x").epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, r"epochs=0: .*greater than or equal to 1"),
        ({"epochs": "two"}, r"epochs='two': should be a whole number"),
        ({"learning_rate": -1}, r"learning_rate=-1: .*greater than 0"),
        ({"pooling": "max"}, r"pooling='max': .*'pooled_output', 'cls', 'mean' or 'default'"),
        ({"dropout": 1}, r"dropout=1: .*less than 1"),
        ({"train_split": 1.5}, r"train_split=1.5: .*fraction below 1 or a whole number"),
        ({"valid_split": 1}, r"valid_split=1: .*fraction below 1 or a whole number"),
        ({"train_split": 0.8, "valid_split": 0.3}, r"train_split=0.8 and valid_split=0.3"),
        ({"valid_data": "v.csv", "valid_split": 0.1}, r"valid_data and valid_split"),
        ({"early_stopping_patience": 2, "valid_split": 0}, r"early_stopping_patience needs validation rows"),
        ({"run_name": "a/b"}, r"run_name='a/b': .*folder's name"),
        ({"epohcs": 2}, r"unknown key 'epohcs': did you mean 'epochs'\?"),
        ({"data": None}, r"data is missing"),
        ({"data": ""}, r"data='': .*at least 1 character"),
        ({"learning_rate": True}, r"learning_rate=True: should not be a truth value"),
        ({"learning_rate": "inf"}, r"learning_rate='inf': .*finite"),
        ({"train_split": "inf"}, r"train_split='inf': .*finite"),
        ({"label_column": "text"}, r"text_column and label_column are both 'text'"),
    ],
)
def test_a_bad_value_is_one_line_naming_key_value_and_what_is_allowed(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_config({"data": "x.csv", **values})
    assert re.search(message, str(caught.value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data=x.csv", "--epohcs=2"], "unknown argument '--epohcs=2': did you mean '--epochs'?"),
        (["--data=x.csv", "--epoch", "2"], "unknown argument '--epoch': did you mean '--epochs'?"),
        (["--data=x.csv", "--text-column=t"], "unknown argument '--text-column=t': did you mean '--text_column'?"),
        ([str(ROOT / "samples" / "reviews.csv")], "did you mean --data "),
        ([], "data is missing"),
        (["--config", "absent.yaml"], "--config absent.yaml: No such file"),
        (["--data"], "argument --data: expected one argument"),
    ],
)
def test_a_mistyped_command_line_leaves_with_2_and_one_line(arguments: list[str], message: str) -> None:
    done = subprocess.run(
        [sys.executable, "train.py", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_a_yaml_file_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("- a\n")
    (tmp_path / "broken.yaml").write_text("a: [\n")
    with pytest.raises(ConfigError, match=r"list\.yaml: a config file holds `key: value` lines, this one holds list"):
        parse("--config", str(tmp_path / "list.yaml"))
    with pytest.raises(ConfigError, match=r"broken\.yaml: not valid YAML"):
        parse("--config", str(tmp_path / "broken.yaml"))


def test_help_names_every_option_with_its_default_and_loads_no_tensorflow() -> None:
    program = "import runpy, sys; sys.argv = ['train.py', '--help']\ntry:\n    runpy.run_path('train.py', run_name='__main__')\n"
    program += "finally:\n    assert not {'tensorflow', 'pandas', 'wandb'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    text = " ".join(done.stdout.split())
    for name, field in Config.model_fields.items():
        assert f"--{name} " in text
        assert str(field.description) in text.replace("- ", "-") or str(field.description) in text
    assert "[all-MiniLM-L6-v2]" in text.replace("- ", "-")


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda file: file.name)
def test_every_shipped_yaml_is_valid(file: Path) -> None:
    assert parse("--config", str(file)).data


def test_the_reference_lists_every_option_as_it_is() -> None:
    page = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    assert page == config_reference(), "run `make docs`"
    assert [name for name in Config.model_fields if page.count(f"| `{name}` |") != 1] == []


@pytest.mark.parametrize("option", ["freeze_layers=1", "layer_decay=0.9", "encoder_dropout=0.0"])
def test_options_of_opened_encoders_need_one_that_is_trained(option: str) -> None:
    key = option.split("=")[0]
    with pytest.raises(ConfigError, match=f"{key} needs an opened encoder: set encoder_mode to auto or opened"):
        parse_command_line(["--data", "x", f"--{option}", "--encoder_mode", "hub"])
    with pytest.raises(ConfigError, match=f"{key} is about training the encoder, and trainable is false"):
        parse_command_line(["--data", "x", f"--{option}", "--trainable", "false"])


def test_weights_of_labels_are_a_mapping_also_as_text() -> None:
    expected = {"1": 5.0, "spam": 0.5}
    assert parse("--data=x", "--class_weight={1: 5, spam: 0.5}").class_weight == expected
    assert parse("--data=x", "--class_weight", '{"1": 5, "spam": 0.5}').class_weight == expected
    config = Config(data="x", class_weight={1: 5, "spam": 0.5})
    assert config.class_weight == expected
    assert Config(**yaml.safe_load(config.to_yaml())) == config
    assert parse("--data=x", "--class_weight=balanced").class_weight == "balanced"
    assert parse("--data=x", "--class_weight={yes: 5}").class_weight == {"yes": 5.0}
    with pytest.raises(
        ValueError, match="should have its labels in quotes: YAML reads yes, no, true and false without"
    ):
        Config(data="x", class_weight=yaml.safe_load("{yes: 5}"))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("class_weight=equal", "class_weight='equal': should be none, balanced or a mapping such as {spam: 5, ham: 1}"),
        ("class_weight={spam: 0}", "class_weight='{spam: 0}': should be none, balanced or a mapping such as"),
        ("class_weight={spam: 5", "class_weight='{spam: 5': should be none, balanced or a mapping such as"),
        ("class_weight={spam: [1]}", "class_weight='{spam: [1]}': should be none, balanced or a mapping such as"),
        ("text_pair_column=text", "text_column and text_pair_column are both 'text': name two columns"),
        ("text_pair_column=label", "text_pair_column and label_column are both 'label': name two columns"),
        ("label_column=a,text", "text_column and label_column are both 'text': name two columns"),
        ("class_weight={spam: true}", "class_weight='{spam: true}': should be none, balanced or a mapping such as"),
        ("label_separator=", "label_separator='': string should have at least 1 character"),
        ("task=regression", "task='regression': input should be 'auto', 'binary', 'multiclass' or 'multilabel'"),
        ("oversampling=1.5", "oversampling='1.5': input should be less than or equal to 1"),
        (
            "gradient_accumulation_steps=0",
            "gradient_accumulation_steps='0': input should be greater than or equal to 1",
        ),
    ],
)
def test_options_of_pairs_labels_and_imbalance_are_checked(option: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse("--data", "x", f"--{option}")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("names", [["a,b", "c"], [True, False]])
def test_a_list_of_columns_holds_plain_names(names: list[object]) -> None:
    with pytest.raises(ValueError, match="should be names of columns, in quotes where YAML reads them otherwise"):
        Config(data="x", label_column=names)


def test_a_pair_needs_room_for_both_texts() -> None:
    with pytest.raises(ConfigError, match="max_seq_length=4: a pair of texts needs 5 tokens or more"):
        parse("--data=x", "--text_pair_column=other", "--max_seq_length=4")


def agent_arguments(parameters: dict[str, dict[str, Any]], choose: Callable[[list[Any]], Any]) -> list[str]:
    """The command line that a sweep's agent makes of parameters: --key=value, as Python prints the value."""
    values = {}
    for key, parameter in parameters.items():
        given = parameter.get("values") or [parameter[end] for end in ("value", "min", "max") if end in parameter]
        values[key] = choose(given)
    return [f"--{key}={value}" for key, value in values.items()]


@pytest.mark.parametrize("sweep", sorted((ROOT / "sweeps").glob("*.yaml")), ids=lambda path: path.name)
@pytest.mark.parametrize("choose", [lambda given: given[0], lambda given: given[-1]], ids=["first", "last"])
def test_shipped_sweeps_try_what_train_accepts(sweep: Path, choose: Callable[[list[Any]], Any]) -> None:
    described = yaml.safe_load(sweep.read_text(encoding="utf-8"))
    assert described["program"] == "train.py"
    assert described["command"][-1] == "${args}"
    config, _ = parse_command_line(agent_arguments(described["parameters"], choose))
    assert described["metric"]["name"].startswith("epoch/val_")
    assert config.data


def test_what_the_agents_of_sweeps_write_is_read() -> None:
    given = {
        "data": "x.csv",
        "trainable": False,
        "log_examples": True,
        "freeze_layers": None,
        "wandb_tags": ["a", "b"],
        "label_column": ["joy", "love"],
        "class_weight": {"joy": 2.0},
    }
    config, _ = parse_command_line([f"--{key}={value}" for key, value in given.items()])
    assert (config.trainable, config.log_examples, config.freeze_layers) == (False, True, None)
    assert (config.wandb_tags, config.label_columns, config.class_weight) == (["a", "b"], ["joy", "love"], {"joy": 2.0})
