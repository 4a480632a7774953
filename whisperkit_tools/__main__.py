"""`wkt`, also as `python -m whisperkit_tools`."""

import sys


def main() -> None:
    """Run the command line; Ctrl-C while it is imported or ends is met as quietly as in between."""
    try:
        from whisperkit_tools.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("wkt: interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
