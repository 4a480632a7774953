"""The `wkt` command: each sub-command is one file here and is imported only when it is called.

`wkt --help` therefore imports neither torch nor coremltools and answers at once.
"""

import errno
import importlib
import sys
import traceback
from typing import NoReturn

import click

from whisperkit_tools import __version__
from whisperkit_tools.cli.sigint import remembered
from whisperkit_tools.errors import WktError

# Short helps stand here so that listing the commands imports none of them; a test compares them with the commands'.
COMMANDS = {
    "convert": "Convert a Whisper checkpoint to a bundle of Core ML packages, and verify it.",
    "transcribe": "Transcribe audio by running a bundle's packages.",
    "demo": "The whole way on the embedded model: convert to publish, pull, transcribe.",
    "palettize": "Compress a bundle to the smallest that still transcribes as well.",
    "info": "Show what a bundle holds.",
    "verify": "Check a bundle's hashes, contract and parity again.",
    "lint": "Say what will not run on the Neural Engine, and why.",
    "estimate": "Estimate FLOPs, bytes and latency of bundles on chips.",
    "evaluate": "Measure WER, QoI, robustness and speed; resumable.",
    "report": "Write a run's report again, or compare runs.",
    "publish": "Publish bundles with their reports to a model repository.",
    "pull": "Download a published variant and check every file.",
    "versions": "List a repository's variants and versions with their figures.",
    "compare-published": "Compare two published variants: size, WER, QoI, speed.",
    "unpublish": "Remove a variant from a repository, keeping its history.",
    "doctor": "Show what this machine can do.",
}

EXIT_INTERRUPTED = 130


class LazyGroup(click.Group):
    """A click group whose commands are modules of this package, imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of a user's work, not of the alphabet."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import `whisperkit_tools.cli.<name>` and return its `command`."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"whisperkit_tools.cli.{cmd_name.replace('-', '_')}").command
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
    """Whisper checkpoints to small, fast Core ML models, proved on the artifact itself.

    Results go to stdout, progress and messages to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage,
    3 made but not good enough.
    """
    ctx.obj = verbose
    if not verbose:
        from whisperkit_tools.cli.quiet import silence_libraries

        silence_libraries()


def main(args: list[str] | None = None) -> NoReturn:
    """Run `wkt` and exit; every failure is one line on stderr.

    Args:
        args: The arguments after the program's name; those of the process when None.
    """
    arguments = sys.argv[1:] if args is None else args
    try:
        with remembered():
            code = cli.main(arguments, prog_name="wkt", standalone_mode=False)
    except click.exceptions.Exit as error:
        code = error.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("wkt: interrupted; nothing unfinished was left in place", err=True)
        code = EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) went away: not a failure of ours, and stdout must not be flushed again at exit.
        sys.stdout = None
        code = 0
    except WktError as error:
        code = _report(str(error), error.exit_code, arguments)
    except OSError as error:
        code = _report(_os_error_line(error), 1, arguments)
    except Exception as error:  # the last line of defence: a bug of ours is still one line
        what = f"internal error: {type(error).__name__}: {_first_line(error)}"
        code = _report(f"{what} (please report it; `wkt -v ...` shows where)", 1, arguments)
    sys.exit(code if isinstance(code, int) else 0)


def _report(message: str, code: int, arguments: list[str]) -> int:
    if "-v" in arguments[:1] or "--verbose" in arguments[:1]:
        traceback.print_exc()
    click.echo(f"wkt: error: {message}", err=True)
    return code


def _os_error_line(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    if error.errno == errno.ENOSPC:
        return f"the disk is full{where}; free some space and run the same command again, nothing unfinished was kept"
    return f"{error.strerror or _first_line(error)}{where}"


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else "no message"
