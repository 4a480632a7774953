"""`wkt`, also as `python -m whisperkit_tools`."""

import sys


def main() -> None:
    """Run the command line; Ctrl-C while it is still being imported is met as quietly as later."""
    try:
        from whisperkit_tools.cli import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
