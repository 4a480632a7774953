"""Compressed bundles on trial, stored with their measurements until a run has ended by itself.

A run that was killed or interrupted, or that ended with an error, resumes from the candidates it had made.
"""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from whisperkit_tools.compress.planner import CompressionPlan
from whisperkit_tools.files import sha256_of_json, write_whole
from whisperkit_tools.quantization.gate import GateExample
from whisperkit_tools.quantization.search import SearchTrial
from whisperkit_tools.strict_json import json_text, parse_json

_ROOT, _FILES, _MEASURED, _OWNER = "candidates", "bundle", "measured.json", "owner"


@dataclass(frozen=True, slots=True)
class MeasuredCandidate:
    """A candidate that was written and verified, and measured as far as was needed.

    Attributes:
        folder: The bundle without a manifest.
        nbytes: Bytes of encoder and decoder.
        psnr_db: For each component the PSNR of the written package against the intended weights.
        tuning: Mean divergence before and after tuning. None without tuning.
        examples: Measurements on the gate's examples, some of them pending. Empty before the first measurement.
    """

    folder: Path
    nbytes: int
    psnr_db: Mapping[str, float]
    tuning: tuple[float, float] | None
    examples: Sequence[GateExample]


@dataclass(frozen=True, slots=True)
class JudgedCandidate:
    """A candidate that was made and judged.

    Attributes:
        measured: The candidate and its measurements.
        plan: Its plan.
        trial: Its size, its divergence, and the gate's decision where it was asked.
    """

    measured: MeasuredCandidate
    plan: CompressionPlan
    trial: SearchTrial


def candidate_name(parts: Mapping[str, Any]) -> str:
    """Return a name for a candidate from everything that it and its figures depend on."""
    return sha256_of_json(parts)[:24]


class CandidateStore:
    """The candidates made with one sensitivity cache."""

    def __init__(self, cache: Path) -> None:
        """Open the folder, and remove what killed runs have left incomplete."""
        self._root = cache / _ROOT
        self._root.mkdir(exist_ok=True)
        for partial in self._root.glob(".*"):
            if not _is_running(_process(partial.name.rpartition("-")[2])):
                shutil.rmtree(partial, ignore_errors=True)

    def find(self, name: str) -> MeasuredCandidate | None:
        """Return a candidate, which from now on belongs to this run. None without it, or where it cannot be read."""
        place = self._root / name
        try:
            content = parse_json((place / _MEASURED).read_bytes())
            examples = [GateExample(**example) for example in content["examples"]]
            tuning = content["tuning"] and (content["tuning"][0], content["tuning"][1])
            found = MeasuredCandidate(
                place / _FILES, int(content["nbytes"]), dict(content["psnr_db"]), tuning, examples
            )
            (place / _OWNER).write_text(str(os.getpid()))
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return None
        return found

    @contextmanager
    def new(self, name: str) -> Iterator[Path]:
        """Yield a folder to write a candidate's files to. It is removed unless the block calls `keep`."""
        partial = self._partial(name)
        shutil.rmtree(partial, ignore_errors=True)
        (partial / _FILES).mkdir(parents=True)
        try:
            yield partial / _FILES
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def keep(self, name: str, measured: MeasuredCandidate) -> MeasuredCandidate:
        """Store the candidate in the folder of `new` with its measurements."""
        partial, place = self._partial(name), self._root / name
        (partial / _OWNER).write_text(str(os.getpid()))
        (partial / _MEASURED).write_text(_record(measured), encoding="utf-8")
        shutil.rmtree(place, ignore_errors=True)
        partial.replace(place)
        return replace(measured, folder=place / _FILES)

    def update(self, measured: MeasuredCandidate) -> MeasuredCandidate:
        """Store further measurements of a kept candidate, and return it."""
        write_whole(measured.folder.parent / _MEASURED, _record(measured))
        return measured

    def clear(self) -> None:
        """Remove this run's candidates, and those of runs that have ended."""
        for place in self._root.iterdir():
            try:
                owner = _process((place / _OWNER).read_text())
            except OSError:
                continue  # incomplete, of a run in progress
            if owner == os.getpid() or not _is_running(owner):
                shutil.rmtree(place, ignore_errors=True)

    def _partial(self, name: str) -> Path:
        return self._root / f".{name}-{os.getpid()}"


def _record(measured: MeasuredCandidate) -> str:
    return json_text({part: value for part, value in asdict(measured).items() if part != "folder"}, indent=None) + "\n"


def _process(text: str) -> int:
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
