"""The figures in docs/figures.md: stored in docs/figures.json, rendered between markers, measured again by name.

Each record of the data has a block in the page, between `<!-- figures:NAME -->` and `<!-- /figures -->`. The rest of
the page is written by hand.
"""

import datetime
import json
import os
import platform
import re
import subprocess
import tempfile
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tests.benchmarks.harness import ROOT, Figure, benchmarks, progress, wkt

PAGE = ROOT / "docs" / "figures.md"
DATA = ROOT / "docs" / "figures.json"
BLOCK = re.compile(r"<!-- figures:(?P<name>[a-z0-9.-]+) -->\n.*?<!-- /figures -->", re.DOTALL)
BUNDLE, AUDIO, CHECKPOINT = "BUNDLE", "AUDIO", "CHECKPOINT"  # arguments that a measurement fills in


@dataclass(frozen=True, slots=True)
class Record:
    """Figures, and the command, date and machine that they come from.

    Attributes:
        name: The block's name in the page.
        command: The benchmark's name and arguments.
        measured: The date.
        machine: Where.
        figures: What was found. Empty until the first measurement.
        source: The checkpoint of the argument BUNDLE: `demo`, or a model whose dimensions it has.
        convert: Options of the conversion to BUNDLE.
    """

    name: str
    command: tuple[str, ...]
    measured: str = ""
    machine: str = ""
    figures: tuple[Figure, ...] = ()
    source: str = ""
    convert: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return JSON values without what is empty."""
        figures = [{key: value for key, value in asdict(figure).items() if value != ""} for figure in self.figures]
        return {**{key: value for key, value in asdict(self).items() if value}, "figures": figures}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Record":
        """Read what `to_json` gives."""
        figures = tuple(Figure(**figure) for figure in value["figures"])
        lists = {key: tuple(value.get(key, ())) for key in ("command", "convert")}
        return cls(**{**value, **lists, "figures": figures})


def load(path: Path = DATA) -> dict[str, Record]:
    """Return the stored records by name."""
    records = [Record.from_json(value) for value in json.loads(path.read_text(encoding="utf-8"))]
    return {record.name: record for record in records}


def store(records: dict[str, Record], path: Path = DATA) -> None:
    """Write the records."""
    text = json.dumps([record.to_json() for record in records.values()], indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def render(record: Record) -> str:
    """Return a record as Markdown: a row a figure, or a matrix where figures belong to cases."""
    if not record.figures:
        return f"Not measured yet: {_command(record)}."
    return "\n".join([*(_matrix(record) if record.figures[0].case else _list(record)), "", _origin(record)])


def _list(record: Record) -> list[str]:
    return ["| figure | value |", "|---|---|", *(f"| {one.name} | {one.text()} |" for one in record.figures)]


def _matrix(record: Record) -> list[str]:
    cases = list(dict.fromkeys(one.case for one in record.figures))
    names = list(dict.fromkeys(one.name for one in record.figures))
    cells = {(one.name, one.case): one.text() for one in record.figures}
    rows = [[name, *(cells.get((name, case), "") for case in cases)] for name in names]
    lines = [["", *cases], ["---"] * (1 + len(cases)), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _origin(record: Record) -> str:
    parts = [_command(record)]
    if record.source == "demo":
        parts.append(f"BUNDLE from `{' '.join(('wkt', 'convert', 'demo', *record.convert))}`")
    elif record.source:
        made = f"python -m tests.benchmarks convert-memory --make {record.source} DIR"
        parts.append(f"BUNDLE from `{made}` and `{' '.join(('wkt', 'convert', 'DIR', *record.convert))}`")
    return f"{', '.join(parts)}. Measured on {record.measured}, {record.machine}."


def _command(record: Record) -> str:
    return f"`{' '.join(('python', '-m', 'tests.benchmarks', *record.command))}`"


def rewrite(page: str, records: dict[str, Record]) -> str:
    """Return the page with every block rendered anew.

    Raises:
        SystemExit: A block has no record, or a record has no block.
    """
    found = [match["name"] for match in BLOCK.finditer(page)]
    wrong = set(found) ^ set(records)
    if wrong or len(found) != len(set(found)):
        names = ", ".join(sorted(wrong)) or "some twice"
        raise SystemExit(f"{PAGE.name} must have one block for each record of {DATA.name}; look at {names}")
    return BLOCK.sub(lambda match: block(records[match["name"]]), page)


def block(record: Record) -> str:
    """Return a record with its markers."""
    return f"<!-- figures:{record.name} -->\n\n{render(record)}\n\n<!-- /figures -->"


def measure(record: Record, audio: Sequence[str], work: Path, checkpoint: str | None = None) -> Record:
    """Run a record's command again.

    Args:
        record: The record.
        audio: Speech for the argument AUDIO.
        work: Folder for bundles.
        checkpoint: What the argument CHECKPOINT names.

    Raises:
        SystemExit: The benchmark fails, or it needs audio or a checkpoint and there is none.
    """
    if AUDIO in record.command and not audio:
        raise SystemExit(f"{record.name} needs speech: name files or folders with --audio (make figures AUDIO=...)")
    if CHECKPOINT in record.command and checkpoint is None:
        raise SystemExit(f"{record.name} needs a checkpoint: name it with --checkpoint (make figures CHECKPOINT=...)")
    arguments: list[str] = []
    for part in record.command:
        if part == BUNDLE:
            arguments.append(str(make_bundle(record, work)))
        else:
            arguments += audio if part == AUDIO else [checkpoint or part] if part == CHECKPOINT else [part]
    done = subprocess.run(
        benchmarks(*arguments, "--json", "-"), cwd=ROOT, check=False, stdout=subprocess.PIPE, text=True
    )
    if not done.stdout:
        raise SystemExit(f"{record.name}: the benchmark failed with status {done.returncode}")
    figures = tuple(Figure(**figure) for figure in json.loads(done.stdout)["figures"])
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return replace(record, figures=figures, measured=today, machine=this_machine())


def make_bundle(record: Record, work: Path) -> Path:
    """Convert the record's source, unless another record has done so."""
    out = work / "-".join((record.source, *record.convert)).replace("--", "")
    if not out.is_dir():
        checkpoint: str | Path = record.source
        if record.source != "demo":
            checkpoint = work / f"{record.source}-checkpoint"
            if not checkpoint.is_dir():
                subprocess.run(benchmarks("convert-memory", "--make", record.source, checkpoint), cwd=ROOT, check=True)
        command = wkt("convert", checkpoint, "-o", out, *record.convert)
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return next(path for path in out.iterdir() if not path.name.startswith("."))


def this_machine() -> str:
    """Describe the machine, without naming it."""
    return f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, PyTorch on the CPU"


def main(arguments: Sequence[str]) -> int:
    """Measure the named records again and rewrite the page; without names only rewrite it."""
    records = load()
    parser = ArgumentParser(prog="python -m tests.benchmarks figures", description=main.__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"all, or of {', '.join(records)}")
    parser.add_argument("--audio", nargs="+", default=[], help="speech for the benchmarks that take AUDIO")
    parser.add_argument("--checkpoint", help="checkpoint for the benchmarks that take CHECKPOINT")
    parser.add_argument("--work", type=Path, help="folder for bundles, kept [default: a temporary one]")
    options = parser.parse_intermixed_args(arguments)
    names = list(records) if options.names == ["all"] else options.names
    if unknown := sorted(set(names) - set(records)):
        parser.error(f"no figures {', '.join(unknown)}; there are {', '.join(records)}")
    with tempfile.TemporaryDirectory() as folder:
        work = (options.work or Path(folder)).resolve()
        audio = [str(Path(one).resolve()) for one in options.audio]
        for name in names:
            progress(f"figures: {name}")
            records[name] = measure(records[name], audio, work, options.checkpoint)
            store(records)  # what was measured is kept if the next fails
    PAGE.write_text(rewrite(PAGE.read_text(encoding="utf-8"), records), encoding="utf-8")
    return 0
