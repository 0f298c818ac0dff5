"""Mutated command lines: a sample of the refused ones in this process, and the campaign."""

from pathlib import Path

import pytest

from newllm import cli
from tests.campaigns.command_lines import Outcome, main, mutated

QUICK = ("--cfg", "--help", "--version", "dry_run=true")


def test_a_sample_ends_with_results_or_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [words for words in (mutated(number, seed=2) for number in range(50)) if {*QUICK}.intersection(words)]
    assert len(lines) > 12
    for words in lines:
        status = cli.main(words)
        outcome = Outcome(words, status, *capfd.readouterr())
        assert outcome.fault() is None, f"{words} ended with {status}: {outcome.err}"


@pytest.mark.slow
def test_no_command_line_ends_in_a_traceback_a_hang_or_an_ignored_value() -> None:
    assert main(count=2000) == 0
