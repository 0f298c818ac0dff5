"""What people who share folders rely on: nothing in a run directory steers a terminal or a spreadsheet or is secret."""

import csv
import io
import os
from pathlib import Path

import numpy as np
import pytest
from rich.table import Table
from rich.text import Text
from safetensors.numpy import save_file

from newllm.console import Screen
from newllm.store.atomic import replacing
from newllm.store.csv_text import as_csv, equal_csv
from newllm.store.environment import without_secrets
from newllm.store.run_directory import RunDirectory
from newllm.streams import Output, visible

STEERING = [
    "\x1b[2J",
    "\x1b]0;title\x07",
    "\x9b31m",
    "a\rb",
    "\u202eevil",
    "\x08\x08",
    "\x00",
    "\u2066x",
    "\x7f",
    "a\u2028b",
]


@pytest.mark.parametrize("text", STEERING)
def test_control_characters_are_shown_as_text(text: str, tmp_path: Path) -> None:
    file = io.StringIO()
    table = Table(text)
    table.add_row(Text(text, style="red"))
    Screen(file=file, force_terminal=True, color_system="truecolor", width=60).print(table, Text(text), text)
    printed = file.getvalue()
    assert text not in printed
    with (tmp_path / "out").open("wb") as target:  # what a command prints without rich
        output = Output(os.dup(target.fileno()), "utf-8", needed=True)
        output.fileno = lambda: 1  # type: ignore[method-assign]
        print(text, "names\r\n", file=output, flush=True)
    assert (tmp_path / "out").read_bytes().decode() == f"{visible(text)} names\r\n\n"


def test_text_of_any_language_stays_as_it_is() -> None:
    text = "naïve — ελληνικά עברית\u200f 中文 🙂\tcolumn\nline\r\n"
    assert visible(text) == text


def test_a_spreadsheet_executes_no_cell() -> None:
    row = {
        "=HYPERLINK(1)": "=cmd|' /C calc'!A0", "plus": "+1+1", "minus": "-2+3", "at": "@SUM(1)", "tab": "\t=1",
        "return": "\r=1", "number": -0.5, "count": -3, "as text": "-1,234.5", "percent": "-9.6 %", "sign": "-",
        "none": None, "other separator": "a;=cmd", "wide": "\uff1dcmd", "space": " =1",
        "quoted": 'a "b", c', "infinite": float("-inf"),
    }  # fmt: skip
    ((header, cells),) = [tuple(csv.reader(io.StringIO(as_csv([row]), newline="")))]
    assert header[0] == "'=HYPERLINK(1)"
    assert cells[:6] == ["'=cmd|' /C calc'!A0", "'+1+1", "'-2+3", "'@SUM(1)", "'\t=1", "'\r=1"]
    assert cells[6:12] == ["-0.5", "-3", "-1,234.5", "-9.6 %", "-", ""]
    assert cells[12:] == ["a;'=cmd", "'\uff1dcmd", "' =1", 'a "b", c', "-inf"]
    assert equal_csv(as_csv([row]), as_csv([row]))


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("train lr=1e-3 data.tokenizer=gpt2", None),
        ("train data.tokenizer_bytes=200000 data.path=a//b@c", None),
        ("train data.name=https://me:pa55@host/x", "train data.name=https://***@host/x"),
        ("train --token abc seed=1", "train --token *** seed=1"),
        ("train +logger.api_key=abc logger.password=", "train +logger.api_key=*** logger.password=***"),
        ("train notes=hf_abcdefghijklmnopqrstu", "train notes=***"),
        ("HF_AUTH_TOKEN=abc", "HF_AUTH_TOKEN=***"),
        ("train data.path=https://h/x?token=abc&page=2", "train data.path=https://h/x?token=***&page=2"),
        (
            "train data.path=https://h/x?sig=a%2Fb&X-Amz-Signature=9f",
            "train data.path=https://h/x?sig=***&X-Amz-Signature=***",
        ),
        ("train +logger={api_key:abc,project:x}", "train +logger={api_key:***,project:x}"),
        ("hydra.launcher.setup=['export_WANDB_API_KEY=abc']", "hydra.launcher.setup=['export_WANDB_API_KEY=***']"),
        ("notes=eyJhbGciOiJIUzI1NiJ9.eyJzdWIi.x", "notes=***"),
        ("eval=[loss] pos_encoding.signature_length=3 facts.tokens=5 data.tokenizer={a:b} eot_token=x", None),
    ],
)
def test_the_command_line_is_kept_without_secrets(words: str, shown: str | None) -> None:
    assert " ".join(without_secrets(words.split(" "))) == (shown or words)


def test_files_have_the_modes_of_the_user_s_umask(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        with RunDirectory(tmp_path / "run").locked() as directory:
            directory.freeze({"trainer": {"seed": 1}})
            directory.write_table("position", [{"a": 1}])
            directory.append_metrics({"step": 1})
            with replacing(directory.path / "weights.safetensors") as temporary:
                save_file({"w": np.zeros(2)}, temporary)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "run").rglob("*")}
    assert len(modes) >= 7
    assert {name: mode for name, mode in modes.items() if mode not in (0o664, 0o775)} == {}
