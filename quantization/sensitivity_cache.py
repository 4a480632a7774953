"""What was found out about one model on one set of calibration speech, kept in a folder and used again.

It holds the curvature of every weight (a byte an element), the predicted divergence and size of every option, and the
palettes that were made. Each part is written when it is finished, so an interrupted run goes on where it was. The
folder's name comes from the weights' hashes and the calibration set: another model or other speech is another profile.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from whisperkit_tools.quantization.allocation import Candidate
from whisperkit_tools.quantization.compression import Compression
from whisperkit_tools.quantization.palette import Palettized
from whisperkit_tools.quantization.recipe import Key
from whisperkit_tools.quantization.sensitivity import Curvature

_STEPS = 8  # codes an octave
_FORMAT = 2


@dataclass(frozen=True, slots=True)
class ProfileKey:
    """What a profile belongs to.

    Attributes:
        weights: For each component the sha256 of its weights file.
        calibration: sha256 of each window's audio, in order.
        settings: How the curvature was estimated.
    """

    weights: Mapping[str, str]
    calibration: Sequence[str]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The key as plain values."""
        return {
            "format": _FORMAT,
            "weights": dict(self.weights),
            "calibration": list(self.calibration),
            "settings": dict(self.settings),
        }

    @property
    def digest(self) -> str:
        """A short name for it."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]


class Profile:
    """The folder."""

    def __init__(self, root: Path, key: ProfileKey) -> None:
        """Open or begin the profile of `key` below `root`."""
        self.path = root / key.digest
        self.path.mkdir(parents=True, exist_ok=True)
        _write(self.path / "profile.json", (json.dumps(key.to_json(), indent=1) + "\n").encode())
        self._rows = self._read_rows()

    # --- curvature ---------------------------------------------------------------------------------------------------

    def has_curvature(self, component: str) -> bool:
        """Whether the component's curvature is there."""
        return self._curvature_file(component).is_file()

    def _curvature_file(self, component: str) -> Path:
        return self.path / f"{component}.curvature.npz"

    def save_curvature(self, component: str, found: Curvature) -> None:
        """Keep a component's curvature."""
        arrays: dict[str, NDArray[Any]] = {}
        for number, (name, value) in enumerate(found.diagonal.items()):
            codes, top = encode(value)
            arrays |= {f"{number}.name": np.array(name), f"{number}.codes": codes, f"{number}.top": np.array(top)}
            if name in found.gradients:
                arrays[f"{number}.gradients"] = found.gradients[name]
        partial = self.path / f".{component}.partial.npz"
        np.savez(partial, **arrays)  # type: ignore[arg-type]  # no key is `allow_pickle`
        partial.replace(self._curvature_file(component))

    # Of work that is under way: see `kept.Kept`.

    def _kept_file(self, name: str) -> Path:
        return self.path / f"{name}.unfinished.safetensors"

    def load(self, name: str) -> dict[str, Tensor] | None:
        """What an interrupted run had found; None without, or where it cannot be read."""
        path = self._kept_file(name)
        if not path.is_file():
            return None
        try:
            found: dict[str, Tensor] = load_file(path)
            return found
        except (SafetensorError, OSError):
            return None

    def save(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep what has been found so far."""
        partial = self.path / f".{name}.partial.safetensors"
        save_file(dict(tensors), partial)
        partial.replace(self._kept_file(name))

    def drop(self, name: str) -> None:
        """Forget it."""
        self._kept_file(name).unlink(missing_ok=True)

    def curvature(self, component: str) -> "StoredCurvature":
        """The component's curvature, decoded weight by weight."""
        return StoredCurvature(self._curvature_file(component))

    # --- candidates --------------------------------------------------------------------------------------------------

    def _read_rows(self) -> dict[Key, dict[str, Candidate]]:
        rows: dict[Key, dict[str, Candidate]] = {}
        path = self.path / "candidates.jsonl"
        if not path.is_file():
            return rows
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
                option = Compression.from_json(row["compression"])
                candidate = Candidate(option, int(row["nbytes"]), float(row["divergence"]))
                rows.setdefault((row["component"], row["name"]), {})[_text(option)] = candidate
            except (ValueError, KeyError, TypeError):
                continue  # a line that a killed run left half written
        return rows

    def candidate(self, key: Key, option: Compression) -> Candidate | None:
        """What is known of an option for a weight."""
        return self._rows.get(key, {}).get(_text(option))

    def add_candidates(self, key: Key, found: Sequence[Candidate]) -> None:
        """Keep what was found out about a weight."""
        lines = []
        for candidate in found:
            if candidate.option is None:
                continue
            self._rows.setdefault(key, {})[_text(candidate.option)] = candidate
            row = {"component": key[0], "name": key[1], "compression": candidate.option.to_json()}
            lines.append(json.dumps({**row, "nbytes": candidate.nbytes, "divergence": candidate.divergence}))
        path = self.path / "candidates.jsonl"
        torn = path.is_file() and path.stat().st_size > 0 and path.read_bytes()[-1:] != b"\n"
        with path.open("a", encoding="utf-8") as file:
            file.write(("\n" if torn else "") + "".join(line + "\n" for line in lines))

    # --- palettes ----------------------------------------------------------------------------------------------------

    def _palette_file(self, key: Key, option: Compression) -> Path:
        digest = hashlib.sha256(json.dumps([*key, option.to_json()], sort_keys=True).encode()).hexdigest()[:24]
        return self.path / "palettes" / f"{digest}.npz"

    def palette(self, key: Key, option: Compression) -> Palettized | None:
        """A palettized weight that was kept."""
        path = self._palette_file(key, option)
        if not path.is_file():
            return None
        with np.load(path) as stored:
            optional = {name: stored[name] for name in _OPTIONAL if name in stored}
            shape = tuple(int(size) for size in stored["shape"])
            return Palettized(key[1], shape, option, stored["lut"], stored["indices"], **optional)

    def save_palette(self, key: Key, palettized: Palettized) -> None:
        """Keep a palettized weight."""
        path = self._palette_file(key, palettized.option)
        path.parent.mkdir(exist_ok=True)
        arrays = {name: getattr(palettized, name) for name in _OPTIONAL if getattr(palettized, name) is not None}
        arrays |= {"shape": np.array(palettized.shape), "lut": palettized.lut, "indices": palettized.indices}
        partial = path.with_name(f".{path.stem}.partial.npz")
        np.savez(partial, **arrays)
        partial.replace(path)


_OPTIONAL = ("scale", "outlier_positions", "outlier_values")


def _text(option: Compression) -> str:
    return json.dumps(option.to_json(), sort_keys=True)


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)


class StoredCurvature:
    """A component's curvature in its file."""

    def __init__(self, path: Path) -> None:
        """Look into the file."""
        self._stored = np.load(path)
        self._numbers = {
            str(self._stored[name]): name.removesuffix(".name") for name in self._stored.files if name.endswith(".name")
        }

    @property
    def names(self) -> tuple[str, ...]:
        """The weights in it."""
        return tuple(self._numbers)

    def read(self, name: str) -> NDArray[np.float32]:
        """The curvature of one weight, of its shape."""
        number = self._numbers[name]
        return decode(self._stored[f"{number}.codes"], float(self._stored[f"{number}.top"]))

    def gradients(self, name: str) -> NDArray[np.float32] | None:
        """What is kept of the gradients of one weight, `[S, *shape]`; None for most."""
        key = f"{self._numbers[name]}.gradients"
        return self._stored[key] if key in self._stored.files else None

    def close(self) -> None:
        """Close the file."""
        self._stored.close()


def encode(value: NDArray[np.float32]) -> tuple[NDArray[np.uint8], float]:
    """Round to an eighth of an octave, 255 for the largest; 32 octaves below it is zero."""
    top = float(value.max(initial=0.0))
    if not top > 0:
        return np.zeros(value.shape, np.uint8), 0.0
    with np.errstate(divide="ignore"):
        codes = np.rint(255 + _STEPS * np.log2(value / np.float32(top)))
    return np.maximum(codes, 0).astype(np.uint8), top


def decode(codes: NDArray[np.uint8], top: float) -> NDArray[np.float32]:
    """Undo `encode`, to 4.5 %."""
    table = (top * 2.0 ** ((np.arange(256) - 255) / _STEPS)).astype(np.float32)
    table[0] = 0
    return table[codes]
