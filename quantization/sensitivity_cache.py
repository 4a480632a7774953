"""Cache of sensitivities and palettes for one model and one set of calibration speech, in a folder.

It holds the curvature of every weight (a byte per element), the second moments of the layers' inputs, the predicted
divergence and size of every compression tried, and the palettes made. Each part is written when it is finished, so that
an interrupted run resumes. The folder's name is derived from the hashes of the weights and of the calibration set.
Another model or other speech therefore has another cache.
"""

import json
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from whisperkit_tools.errors import RecipeError
from whisperkit_tools.files import replace_whole, sha256_of_json, write_whole
from whisperkit_tools.quantization.allocation import StorageOption
from whisperkit_tools.quantization.compression import Compression
from whisperkit_tools.quantization.input_moments import InputMoments
from whisperkit_tools.quantization.palette import Palettized
from whisperkit_tools.quantization.recipe import WeightKey
from whisperkit_tools.quantization.sensitivity import Curvature
from whisperkit_tools.strict_json import json_text, parse_json

_CODES_PER_OCTAVE = 8
_FORMAT = 3
_OPTIONAL_ARRAYS = ("scale", "outlier_positions", "outlier_values")


@dataclass(frozen=True, slots=True)
class SensitivityKey:
    """The model and the calibration speech that a cache belongs to.

    Attributes:
        weights: For each component the sha256 of its weights file.
        calibration: sha256 of each window's audio, in order.
        settings: Settings of the curvature's estimation.
    """

    weights: Mapping[str, str]
    calibration: Sequence[str]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the key as JSON-ready values."""
        return {
            "format": _FORMAT,
            "weights": dict(self.weights),
            "calibration": list(self.calibration),
            "settings": dict(self.settings),
        }

    @property
    def digest(self) -> str:
        """The name of the cache's folder: 16 hex digits."""
        return sha256_of_json(self.to_json())[:16]


# What NumPy and its archives raise for a damaged file.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    OSError,
    NotImplementedError,
    RuntimeError,
)


class SensitivityCache:
    """The cache. It is also the `CheckpointStore` of work in progress."""

    def __init__(self, root: Path, key: SensitivityKey, note: Callable[[str], None] = lambda line: None) -> None:
        """Open or create the cache of `key` below `root`.

        Args:
            root: The folder of caches.
            key: What the sensitivities were measured on.
            note: Told of a damaged file, which is set aside and made anew.
        """
        self._note = note
        self.path = root / key.digest
        write_whole(self.path / "profile.json", json_text(key.to_json(), indent=1) + "\n")
        self._rows = self._read_rows()

    # --- curvature ---------------------------------------------------------------------------------------------------

    def has_curvature(self, component: str) -> bool:
        """Whether the component's curvature is stored."""
        return self._is_whole(self._curvature_file(component))

    def _curvature_file(self, component: str) -> Path:
        return self.path / f"{component}.curvature.npz"

    def save_curvature(self, component: str, found: Curvature) -> None:
        """Store a component's curvature."""
        arrays: dict[str, NDArray[Any]] = {}
        for number, (name, value) in enumerate(found.diagonal.items()):
            codes, top = encode_curvature(value)
            arrays |= {f"{number}.name": np.array(name), f"{number}.codes": codes, f"{number}.top": np.array(top)}
            if name in found.gradients:
                arrays[f"{number}.gradients"] = found.gradients[name]
        _write_arrays(self._curvature_file(component), arrays)

    def curvature(self, component: str) -> "StoredCurvature":
        """Open the component's curvature, which is decoded weight by weight."""
        return StoredCurvature(self._curvature_file(component))

    def _is_whole(self, path: Path) -> bool:
        """Return whether a file of arrays is there and undamaged. A damaged one is set aside."""
        if not path.is_file():
            return False
        try:
            with zipfile.ZipFile(path) as stored:
                damaged = stored.testzip()
        except _DAMAGE:
            damaged = path.name
        if damaged is not None:
            self._set_aside(path)
        return damaged is None

    def _set_aside(self, path: Path) -> None:
        aside = path.with_name(f"{path.name}.damaged")
        path.replace(aside)
        self._note(f"{path} is damaged; it is kept as {aside.name} and made anew")

    # --- moments of inputs -------------------------------------------------------------------------------------------

    def has_moments(self, component: str) -> bool:
        """Whether the moments of the component's inputs are stored."""
        return self._is_whole(self._moments_file(component))

    def _moments_file(self, component: str) -> Path:
        return self.path / f"{component}.moments.npz"

    def save_moments(self, component: str, found: InputMoments) -> None:
        """Store the moments of a component's inputs."""
        numbers = {value: str(number) for number, value in enumerate(found.moments)}
        weights = {f"weight.{name}": np.array(numbers[value]) for name, value in found.values.items()}
        moments = {numbers[value]: moment for value, moment in found.moments.items()}
        _write_arrays(self._moments_file(component), {**weights, **moments})

    def moment(self, key: WeightKey) -> NDArray[np.float32] | None:
        """Return the moment `[C, C]` of a weight's input. None for weights that are not compensated."""
        path = self._moments_file(key[0])
        if not path.is_file():
            return None
        with np.load(path) as stored:
            name = f"weight.{key[1]}"
            found: NDArray[np.float32] | None = stored[str(stored[name])] if name in stored else None
            return found

    # --- checkpoints of work in progress -----------------------------------------------------------------------------

    def _checkpoint_file(self, name: str) -> Path:
        return self.path / f"{name}.unfinished.safetensors"

    def load(self, name: str) -> dict[str, Tensor] | None:
        """Return the checkpoint of an interrupted run. None without one, or where it cannot be read."""
        path = self._checkpoint_file(name)
        if not path.is_file():
            return None
        try:
            found: dict[str, Tensor] = load_file(path)
            return found
        except (SafetensorError, OSError):
            return None

    def save(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Store a checkpoint."""
        with replace_whole(self._checkpoint_file(name)) as partial:
            save_file(dict(tensors), partial)

    def drop(self, name: str) -> None:
        """Remove a checkpoint."""
        self._checkpoint_file(name).unlink(missing_ok=True)

    # --- storage options ---------------------------------------------------------------------------------------------

    def _read_rows(self) -> dict[WeightKey, dict[str, StorageOption]]:
        rows: dict[WeightKey, dict[str, StorageOption]] = {}
        path = self.path / "candidates.jsonl"
        if not path.is_file():
            return rows
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = parse_json(line)
                compression = Compression.from_json(row["compression"])
                found = StorageOption(compression, int(row["nbytes"]), float(row["divergence"]))
                rows.setdefault((row["component"], row["name"]), {})[_text(compression)] = found
            except (ValueError, KeyError, TypeError, RecipeError):
                continue  # a line that a killed run left incomplete, or that another version wrote
        return rows

    def option(self, key: WeightKey, compression: Compression) -> StorageOption | None:
        """Return the stored size and divergence of a compression for a weight."""
        return self._rows.get(key, {}).get(_text(compression))

    def add_options(self, key: WeightKey, found: Sequence[StorageOption]) -> None:
        """Store sizes and divergences for a weight."""
        lines = []
        for option in found:
            if option.compression is None:
                continue
            self._rows.setdefault(key, {})[_text(option.compression)] = option
            row = {"component": key[0], "name": key[1], "compression": option.compression.to_json()}
            lines.append(json_text({**row, "nbytes": option.nbytes, "divergence": option.divergence}, indent=None))
        path = self.path / "candidates.jsonl"
        torn = path.is_file() and path.stat().st_size > 0 and path.read_bytes()[-1:] != b"\n"
        with path.open("a", encoding="utf-8") as file:
            file.write(("\n" if torn else "") + "".join(line + "\n" for line in lines))

    # --- palettes ----------------------------------------------------------------------------------------------------

    def _palette_file(self, key: WeightKey, compression: Compression) -> Path:
        return self.path / "palettes" / f"{sha256_of_json([*key, compression.to_json()])[:24]}.npz"

    def palette(self, key: WeightKey, compression: Compression) -> Palettized | None:
        """Return a stored palettized weight, or None."""
        path = self._palette_file(key, compression)
        if not path.is_file():
            return None
        try:
            with np.load(path) as stored:
                optional = {name: stored[name] for name in _OPTIONAL_ARRAYS if name in stored}
                shape = tuple(int(size) for size in stored["shape"])
                return Palettized(key[1], shape, compression, stored["lut"], stored["indices"], **optional)
        except _DAMAGE:
            self._set_aside(path)
            return None

    def save_palette(self, key: WeightKey, palettized: Palettized) -> None:
        """Store a palettized weight."""
        arrays = {name: getattr(palettized, name) for name in _OPTIONAL_ARRAYS}
        arrays = {name: array for name, array in arrays.items() if array is not None}
        arrays |= {"shape": np.array(palettized.shape), "lut": palettized.lut, "indices": palettized.indices}
        _write_arrays(self._palette_file(key, palettized.compression), arrays)


def _text(compression: Compression) -> str:
    return json.dumps(compression.to_json(), sort_keys=True)


def _write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    with replace_whole(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # no key is `allow_pickle`


class StoredCurvature:
    """A component's curvature in its file."""

    def __init__(self, path: Path) -> None:
        """Read the file's table of contents."""
        self._stored = np.load(path)
        self._numbers = {
            str(self._stored[name]): name.removesuffix(".name") for name in self._stored.files if name.endswith(".name")
        }

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the weights."""
        return tuple(self._numbers)

    def read(self, name: str) -> NDArray[np.float32]:
        """Return the curvature of one weight, of its shape."""
        number = self._numbers[name]
        return decode_curvature(self._stored[f"{number}.codes"], float(self._stored[f"{number}.top"]))

    def gradients(self, name: str) -> NDArray[np.float32] | None:
        """Return the stored gradients of one weight, `[S, *shape]`. None for weights that are not added."""
        key = f"{self._numbers[name]}.gradients"
        return self._stored[key] if key in self._stored.files else None

    def close(self) -> None:
        """Close the file."""
        self._stored.close()


def encode_curvature(value: NDArray[np.float32]) -> tuple[NDArray[np.uint8], float]:
    """Round to an eighth of an octave, with 255 for the maximum. Values 32 octaves below it become zero.

    Returns:
        The codes, and the maximum.
    """
    top = float(value.max(initial=0.0))
    if not top > 0:
        return np.zeros(value.shape, np.uint8), 0.0
    with np.errstate(divide="ignore"):
        codes = np.rint(255 + _CODES_PER_OCTAVE * np.log2(value / np.float32(top)))
    return np.maximum(codes, 0).astype(np.uint8), top


def decode_curvature(codes: NDArray[np.uint8], top: float) -> NDArray[np.float32]:
    """Undo `encode_curvature`, to 4.5 %."""
    table = (top * 2.0 ** ((np.arange(256) - 255) / _CODES_PER_OCTAVE)).astype(np.float32)
    table[0] = 0
    return table[codes]
