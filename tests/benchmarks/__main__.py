"""The entry to all benchmarks.

python -m tests.benchmarks                     list them
python -m tests.benchmarks NAME --help         what one measures, and its options
python -m tests.benchmarks NAME [options]      run one; tables go to stdout, progress to stderr
python -m tests.benchmarks figures [NAME ...]  measure stored figures again and rewrite docs/figures.md
"""

import argparse
import ast
import importlib
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.harness import REGISTRY, Benchmark, Result

FOLDER = Path(__file__).parent


def summaries() -> dict[str, str]:
    """Each benchmark's name and the first line of its module, read without importing anything heavy."""
    found = {}
    for path in sorted(FOLDER.glob("*.py")):
        text = path.read_text(encoding="utf-8")
        declared = re.search(r'^@benchmark\("([a-z-]+)"', text, re.MULTILINE)
        if declared is not None:
            found[declared[1]] = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    return found


def find(name: str) -> Benchmark:
    """Import the module of a benchmark."""
    importlib.import_module(f"tests.benchmarks.{name.replace('-', '_')}")
    return REGISTRY[name]


def parser_of(name: str) -> argparse.ArgumentParser:
    """Return the parser of a benchmark's options and of those that all have."""
    one = find(name)
    parser = argparse.ArgumentParser(
        prog=f"python -m tests.benchmarks {name}",
        description=sys.modules[one.run.__module__].__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    one.options(parser)
    parser.add_argument("--json", metavar="FILE", help="also write everything as JSON; - for stdout, without tables")
    return parser


def measure(name: str, arguments: Sequence[str]) -> tuple[Result, argparse.Namespace]:
    """Run a benchmark with options as on the command line."""
    options = parser_of(name).parse_intermixed_args(arguments)
    if getattr(options, "threads", None):
        import torch

        torch.set_num_threads(options.threads)
    return find(name).run(options), options


def main(arguments: Sequence[str]) -> int:
    """Run a command; exit 1 where a limit does not hold, 2 where the usage is wrong."""
    names = summaries()
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, names))
        print(__doc__)
        print("\n".join(f"{name:<{width}}  {summary}" for name, summary in names.items()))
        return 0
    name, *rest = arguments
    if name == "figures":
        from tests.benchmarks import figures

        return figures.main(rest)
    if name not in names:
        print(f"no benchmark {name!r}; there are: {', '.join(names)}", file=sys.stderr)
        return 2
    result, options = measure(name, rest)
    if options.json != "-":
        print(result.text())
    if options.json:
        text = json.dumps({"benchmark": name, "arguments": rest, **result.to_json()}, indent=2, ensure_ascii=False)
        if options.json == "-":
            print(text)
        else:
            Path(options.json).write_text(text + "\n", encoding="utf-8")
    return int(not result.passed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
