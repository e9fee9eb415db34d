"""Writes docs/config.md from config.py: `make docs`."""

from command_line import default_text
from config import SECTIONS, Config

_HEAD = """# Options

On the command line as `--key value` or `--key=value`, in a YAML file given by `--config`, as arguments of `Config`, or as
parameters of a W&B sweep. The command line beats YAML, YAML beats the default; `null` gives a key its default. An unknown key or
a value that is not allowed ends the command at once, with exit code 2 and a line that says what is allowed. `--debug` shows the
traceback behind an error. Ready-made files are in `configs/`.

This page is made by `make docs` from `config.py`.
"""


def config_reference() -> str:
    """The page, in Markdown: a table for each section of `--help`."""
    lines = [_HEAD]
    for name, field in Config.model_fields.items():
        if name in SECTIONS:
            title = SECTIONS[name]
            lines += ["", f"## {title[0].upper()}{title[1:]}", "", "| key | default | what it does |", "|---|---|---|"]
        default = "required" if field.is_required() else f"`{default_text(field)}`"
        lines.append(f"| `{name}` | {default} | {(field.description or '').replace('|', chr(92) + '|')} |")
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


if __name__ == "__main__":
    print(config_reference(), end="")
