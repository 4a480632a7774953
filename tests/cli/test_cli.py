"""The command line's own behaviour: help, exit codes, one-line errors, interruption."""

import errno
import subprocess
import sys
from pathlib import Path

import click
import pytest

from whisperkit_tools import cli
from whisperkit_tools.errors import BundleError, OptionsError, QualityGateError


def run(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


def test_help_lists_every_command(capsys):
    code, out, _ = run(["--help"], capsys)
    assert code == 0
    assert all(name in out for name in cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_each_command_is_there_with_the_help_of_the_list(name):
    command = cli.cli.get_command(click.Context(cli.cli), name)
    assert command.help.split("\n\n")[0].replace("\n", " ") == cli.COMMANDS[name]


def test_unknown_command_is_a_usage_error(capsys):
    code, out, err = run(["palettise"], capsys)
    assert (code, out) == (2, "")
    assert "palettise" in err


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (BundleError("no bundle at x"), 1, "wkt: error: no bundle at x"),
        (QualityGateError("too low"), 3, "wkt: error: too low"),
        (OptionsError("too far"), 2, "wkt: error: too far"),
        (KeyboardInterrupt(), 130, "wkt: interrupted; nothing unfinished was left in place"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 1, "wkt: error: Permission denied (/x)"),
        (ZeroDivisionError("division by zero"), 1, "wkt: error: internal error: ZeroDivisionError: division by zero"),
    ],
)
def test_failures_are_one_line_and_an_exit_code(monkeypatch, capsys, error, code, line):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(cli.cli, "main", fail)
    found, out, err = run(["doctor"], capsys)
    assert (found, out) == (code, "")
    assert err.startswith(line)
    assert err.count("\n") == 1


def test_a_full_disk_says_what_to_do(monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", "/bundles/x")

    monkeypatch.setattr(cli.cli, "main", fail)
    code, _, err = run(["doctor"], capsys)
    assert code == 1
    assert "the disk is full (/bundles/x)" in err


def test_verbose_shows_where_it_failed(monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise BundleError("no bundle")

    monkeypatch.setattr(cli.cli, "main", fail)
    _, _, err = run(["-v", "doctor"], capsys)
    assert "Traceback" in err


def test_doctor_prints_what_this_machine_has():
    done = subprocess.run(
        [sys.executable, "-m", "whisperkit_tools", "doctor"], capture_output=True, text=True, check=True
    )
    assert "core ml" in done.stdout
    assert "wav, flac" in done.stdout
    assert done.stderr == ""


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_that_a_library_swallows_still_counts():
    """Between its stages a command looks whether one came."""
    program = """
import os, signal
from whisperkit_tools.cli.interrupts import sticky_interrupts
from whisperkit_tools.cli.progress import ConsoleProgress

with sticky_interrupts():
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        print("swallowed", flush=True)
    with ConsoleProgress().stage("next", "stage"):
        print("went on")
"""
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert done.stdout == "swallowed\n"
    assert done.stderr.endswith("KeyboardInterrupt\n")


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_in_a_destructor_counts_and_prints_nothing():
    """Python prints what a destructor raises, traceback and all; other errors there are still shown."""
    program = """
import os, signal
from whisperkit_tools.cli.interrupts import check_interrupted, sticky_interrupts

class Interrupting:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)

class Failing:
    def __del__(self):
        raise ValueError("shown")

with sticky_interrupts():
    Interrupting()
    try:
        check_interrupted()
    except KeyboardInterrupt:
        print("counted")
    Failing()
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout == "counted\n"
    assert "KeyboardInterrupt" not in done.stderr
    assert "ValueError: shown" in done.stderr


def test_the_command_reference_is_up_to_date():
    from whisperkit_tools.cli.reference import reference

    written = (Path(__file__).resolve().parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    assert written == reference(), "run `make docs`"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_texts_are_sentences_in_plain_words(name):
    """Each says by itself what the option is for; none asks a question or trails off."""
    command = cli.cli.get_command(click.Context(cli.cli), name)
    for param in command.params:
        if isinstance(param, click.Option):
            text = param.help.split("  [default")[0]
            assert text[0].isupper() or text.split()[0].strip(":,") in ("mixed", "executor", "demo"), param.opts
            assert text.endswith("."), param.opts
            assert text.split()[0] not in ("Of", "Most", "Least", "What", "Whether", "How", "Where", "Who"), param.opts
            assert ";" not in text, param.opts
