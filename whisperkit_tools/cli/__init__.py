"""The `wkt` command: options, one call into `whisperkit_tools`, and printing.

Each sub-command is one file here and is imported when it is called, so `wkt --help` answers at once.
"""

import difflib
import errno
import importlib
import logging
import os
import sys
import traceback
import warnings
from typing import Any, NoReturn

import click

from whisperkit_tools import __version__
from whisperkit_tools.cli.flags import show_flags
from whisperkit_tools.cli.interrupts import exit_code_of_signal, sticky_interrupts
from whisperkit_tools.errors import WktError
from whisperkit_tools.files import first_line
from whisperkit_tools.terminal_text import plain_lines

# Listed here so that `wkt --help` imports no command. A test compares them with the first lines of the commands' help.
COMMANDS = {
    "convert": "Convert a Whisper checkpoint to a verified bundle of Core ML packages.",
    "transcribe": "Transcribe audio with a bundle.",
    "demo": "Run every step on the embedded demo model, from convert to transcribe.",
    "palettize": "Compress a bundle to the smallest size that passes the quality gate.",
    "info": "Show what a bundle contains.",
    "verify": "Check a bundle's hashes, runtime contract and parity.",
    "lint": "List what will not run on the Neural Engine, and why.",
    "estimate": "Estimate FLOPs, memory traffic and latency of bundles on Apple chips.",
    "evaluate": "Measure word error rate, quality of inference, robustness and speed.",
    "report": "Rewrite the report of a run, or compare runs.",
    "pseudo-label": "Label speech with a teacher, for distillation.",
    "filter-labels": "Choose among labels, and join what is kept to windows for training.",
    "init-student": "Make a student for distillation from some of a teacher's layers.",
    "publish": "Publish bundles and their evaluation reports to a model repository.",
    "pull": "Download a published variant and verify every file.",
    "versions": "List a repository's variants and versions with their figures.",
    "compare-published": "Compare two published variants by size, accuracy and speed.",
    "unpublish": "Remove a variant from a repository and keep its history.",
    "doctor": "Show what this machine supports.",
}


class LazyGroup(click.Group):
    """A click group whose commands are modules of this package, imported on use."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. An error names its options as the flags of that command."""
        try:
            return super().invoke(ctx)
        except WktError as error:
            command = self.get_command(ctx, ctx.invoked_subcommand or "")
            error.message = show_flags(error.message, command)
            raise

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command. An unknown one gets a suggestion."""
        name = args[0] if args else ""
        if args and not name.startswith("-") and name not in COMMANDS:
            close = difflib.get_close_matches(name.lower(), COMMANDS, n=2, cutoff=0.5)
            hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(COMMANDS)}"
            raise click.UsageError(f"no command {name!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of a user's work."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import `whisperkit_tools.cli.<name>` and return its `command`."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"whisperkit_tools.cli.{cmd_name.replace('-', '_')}").command
        command.short_help = COMMANDS[cmd_name]
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table above, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="wkt", message="%(prog)s %(version)s")
@click.option("-v", "--verbose", is_flag=True, help="Show the libraries' own messages, and tracebacks.")
@click.pass_context
def cli(ctx: click.Context, verbose: bool) -> None:
    """Turn Whisper checkpoints into small, fast Core ML models, and prove that they still transcribe as well.

    Results go to stdout, progress and messages to stderr. Exit codes: 0 success, 1 failure, 2 wrong usage,
    3 a quality gate was not passed.
    """
    ctx.obj = verbose
    if not verbose:
        _silence_libraries()


def _silence_libraries() -> None:
    """Let only errors of the libraries through. Their warnings address developers, not the user of `wkt`."""
    warnings.simplefilter("ignore")
    # The libraries read these when they are first imported, which is later than this.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("transformers", "huggingface_hub", "coremltools", "torch", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)


def main(args: list[str] | None = None) -> NoReturn:
    """Run `wkt` and exit. Every failure is one line on stderr.

    Args:
        args: The arguments after the program's name, or None for those of the process.
    """
    arguments = sys.argv[1:] if args is None else args
    try:
        with sticky_interrupts():
            code = cli.main(arguments, prog_name="wkt", standalone_mode=False)
    except click.exceptions.Exit as error:
        code = error.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("wkt: interrupted; nothing unfinished was left in place", err=True)
        code = exit_code_of_signal()
    except BrokenPipeError:
        # The reader (`| head`) closed the pipe: this is no failure, and stdout must not be flushed again at exit.
        sys.stdout = None
        code = 0
    except WktError as error:
        code = _report(show_flags(error.message), error.exit_code, arguments)
    except OSError as error:
        code = _report(_os_error_line(error), 1, arguments)
    except Exception as error:  # a bug of ours is still one line
        what = f"internal error: {type(error).__name__}: {first_line(error)}"
        code = _report(f"{what} (please report it; `wkt -v ...` shows where)", 1, arguments)
    sys.exit(code if isinstance(code, int) else 0)


def _report(message: str, code: int, arguments: list[str]) -> int:
    if "-v" in arguments[:1] or "--verbose" in arguments[:1]:
        traceback.print_exc()
    click.echo(f"wkt: error: {plain_lines(message)}", err=True)
    return code


def _os_error_line(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    if error.errno == errno.ENOSPC:
        return f"the disk is full{where}; free some space and run the same command again, nothing unfinished was kept"
    return f"{error.strerror or first_line(error)}{where}"
