"""Compressed bundles on trial, kept with what was measured on them until a run has ended by itself.

A run that is killed, or interrupted, or that ends with an error thus takes its candidates up again where it was.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from whisperkit_tools.quantization.gate import Example

_ROOT, _FILES, _MEASURED, _OWNER = "candidates", "bundle", "measured.json", "owner"


@dataclass(frozen=True, slots=True)
class Measured:
    """A candidate that was written, verified and measured.

    Attributes:
        folder: The bundle but for its manifest.
        nbytes: Of encoder and decoder.
        psnr_db: Of the written packages against the intended weights.
        tuning: Mean divergence before and after tuning; None untuned.
        examples: What was measured on the gate's examples.
    """

    folder: Path
    nbytes: int
    psnr_db: Mapping[str, float]
    tuning: tuple[float, float] | None
    examples: Sequence[Example]


def digest(parts: Mapping[str, Any]) -> str:
    """A name for a candidate, from all that it and its figures depend on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


class Candidates:
    """The candidates of one profile."""

    def __init__(self, profile: Path) -> None:
        """Open the folder, and remove what killed runs have left half written."""
        self._root = profile / _ROOT
        self._root.mkdir(exist_ok=True)
        for partial in self._root.glob(".*"):
            if not _is_running(_number(partial.name.rpartition("-")[2])):
                shutil.rmtree(partial, ignore_errors=True)

    def find(self, name: str) -> Measured | None:
        """The candidate of a name, from now on this run's; None without, or where it cannot be read."""
        place = self._root / name
        try:
            content = json.loads((place / _MEASURED).read_text(encoding="utf-8"))
            examples = [Example(**example) for example in content["examples"]]
            tuning = content["tuning"] and (content["tuning"][0], content["tuning"][1])
            found = Measured(place / _FILES, int(content["nbytes"]), dict(content["psnr_db"]), tuning, examples)
            (place / _OWNER).write_text(str(os.getpid()))
        except (OSError, ValueError, LookupError, TypeError):
            return None
        return found

    @contextmanager
    def new(self, name: str) -> Iterator[Path]:
        """A folder to write a candidate's files to; it goes when the block fails or does not `keep` it."""
        partial = self._partial(name)
        shutil.rmtree(partial, ignore_errors=True)
        (partial / _FILES).mkdir(parents=True)
        try:
            yield partial / _FILES
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def keep(self, name: str, measured: Measured) -> Measured:
        """Put the candidate that was written to the folder of `new` in place, with what was measured."""
        partial, place = self._partial(name), self._root / name
        content = {part: value for part, value in asdict(measured).items() if part != "folder"}
        (partial / _OWNER).write_text(str(os.getpid()))
        (partial / _MEASURED).write_text(json.dumps(content) + "\n", encoding="utf-8")
        shutil.rmtree(place, ignore_errors=True)
        partial.replace(place)
        return replace(measured, folder=place / _FILES)

    def clear(self) -> None:
        """Remove this run's candidates, and those of runs that have ended."""
        for place in self._root.iterdir():
            try:
                owner = _number((place / _OWNER).read_text())
            except OSError:
                continue  # a running one's, half written
            if owner == os.getpid() or not _is_running(owner):
                shutil.rmtree(place, ignore_errors=True)

    def _partial(self, name: str) -> Path:
        return self._root / f".{name}-{os.getpid()}"


def _number(text: str) -> int:
    return int(text) if text.strip().isdigit() else -1


def _is_running(process: int) -> bool:
    if process < 1:
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
