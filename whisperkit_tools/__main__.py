"""`python -m whisperkit_tools` is `wkt`."""

from whisperkit_tools.cli import main

if __name__ == "__main__":
    main()
