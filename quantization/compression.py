"""Settings of one compressed weight, the deployment target that each needs, and the bytes that the weight then takes.

Bytes are those in a package's weights file, records and padding included.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from whisperkit_tools.errors import RecipeError

Granularity = Literal["per_tensor", "per_grouped_channel"]
Kind = Literal["palette", "linear"]

NBITS = (1, 2, 3, 4, 6, 8)
CLUSTER_DIMS = (1, 2, 4)
IOS16_NBITS = (1, 2, 4, 6, 8)
SPEC_VERSIONS = {7: "iOS 16 / macOS 13", 8: "iOS 17 / macOS 14", 9: "iOS 18 / macOS 15"}
"""Deployment target by the Core ML specification version that it introduced."""
_IOS16, _IOS18 = 7, 9
_MAX_OUTLIER_SHARE = 0.1
_LINEAR_NBITS = 8
_ALIGNMENT = 64  # bytes of a record, and the multiple to which data is padded
MIN_BLOB_ELEMENTS = 10
"""Constants with fewer elements are stored in the program itself, as coremltools writes them."""


@dataclass(frozen=True, slots=True)
class Compression:
    """How one weight is stored: as palettes, with optional scales and outliers, or as 8-bit integers with scales.

    A weight `[128, 64, 1, 1]` at `nbits=4, granularity="per_grouped_channel", group_size=16` has 8 palettes of 16
    entries, one for each 16 channels of axis 0. With `cluster_dim=2` an index represents two neighbours along that
    axis, so that an element costs two bits.

    Attributes:
        nbits: Bits per index or integer.
        granularity: One palette for the whole weight, or one for each group of `group_size` channels.
        group_size: Channels that share a palette; 0 for `per_tensor`.
        axis: The axis of the channels: of groups, of scales, and of the elements of a vector.
        cluster_dim: Elements along `axis` that one index represents.
        per_channel_scale: Each channel is divided by its largest magnitude before palettes are made.
        outlier_share: Share of the elements that are kept in float16 in a sparse part, 0 to 0.1.
        kind: `palette`, or `linear` for integers of 8 bits from -127 to 127 and a scale for each channel of `axis`.
    """

    nbits: int
    granularity: Granularity = "per_tensor"
    group_size: int = 0
    axis: int = 0
    cluster_dim: int = 1
    per_channel_scale: bool = False
    outlier_share: float = 0.0
    kind: Kind = "palette"

    def __post_init__(self) -> None:
        """Check the settings against each other.

        Raises:
            RecipeError: Settings are out of range or contradict each other. The message names all of them.
        """
        problems = list(self._problems())
        if problems:
            raise RecipeError("not a compression: " + "; ".join(problems))

    def _problems(self) -> Sequence[str]:
        found = []
        if self.nbits not in NBITS:
            found.append(f"nbits is {self.nbits!r}, allowed are {', '.join(map(str, NBITS))}")
        if self.granularity not in get_args(Granularity):
            found.append(f"granularity is {self.granularity!r}, allowed are {', '.join(get_args(Granularity))}")
        if self.cluster_dim not in CLUSTER_DIMS:
            found.append(f"cluster_dim is {self.cluster_dim!r}, allowed are {', '.join(map(str, CLUSTER_DIMS))}")
        if (self.granularity == "per_grouped_channel") != (self.group_size > 0):
            found.append(f"group_size is {self.group_size} with granularity {self.granularity}")
        elif self.group_size and self.cluster_dim in CLUSTER_DIMS and self.group_size % self.cluster_dim:
            found.append(f"group_size {self.group_size} is not a multiple of cluster_dim {self.cluster_dim}")
        if self.axis < 0:
            found.append(f"axis is {self.axis}, expected 0 or more")
        if not 0 <= self.outlier_share <= _MAX_OUTLIER_SHARE:
            found.append(f"outlier_share is {self.outlier_share}, expected 0 to {_MAX_OUTLIER_SHARE}")
        if self.per_channel_scale and self.cluster_dim > 1:
            found.append(
                "per_channel_scale does not go with cluster_dim above 1, because vectors extend across channels"
            )
        if self.kind not in get_args(Kind):
            found.append(f"kind is {self.kind!r}, allowed are {', '.join(get_args(Kind))}")
        if self.kind == "linear" and (self.nbits != _LINEAR_NBITS or not self._is_plain or self.outlier_share):
            found.append(
                f"kind linear takes nbits {_LINEAR_NBITS} and an axis, and no groups, vectors, scales or outliers"
            )
        return found

    @property
    def _is_plain(self) -> bool:
        """Whether the weight has one palette of numbers, without scales."""
        return self.granularity == "per_tensor" and self.cluster_dim == 1 and not self.per_channel_scale

    @property
    def has_scales(self) -> bool:
        """Whether each channel of `axis` has a scale."""
        return self.per_channel_scale or self.kind == "linear"

    @property
    def entries(self) -> int:
        """Number of entries in a palette."""
        return int(2**self.nbits)

    @property
    def spec_version(self) -> int:
        """The lowest specification version that supports this form: 7 (iOS 16) or 9 (iOS 18)."""
        return _IOS16 if self._is_plain and self.nbits in IOS16_NBITS else _IOS18

    @property
    def target(self) -> str:
        """The lowest deployment target that supports this form."""
        return SPEC_VERSIONS[self.spec_version]

    def palettes(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the number of palettes along each axis of a weight of `shape`."""
        return tuple(
            size // self.group_size if self.group_size and axis == self.axis else 1 for axis, size in enumerate(shape)
        )

    def table_bits(self, shape: Sequence[int]) -> float:
        """Return the bits of palettes, or of the scales of integers, for each element of a weight of `shape`."""
        if self.kind == "linear":
            return 16 * shape[self.axis] / math.prod(shape)
        return 16 * math.prod(self.palettes(shape)) * self.entries * self.cluster_dim / math.prod(shape)

    def misfit(self, shape: Sequence[int]) -> str:
        """Return why a weight of `shape` cannot be stored in this form, or an empty string when it can."""
        if not shape or math.prod(shape) == 0:
            return "a weight needs at least one axis and one element"
        if self.axis >= len(shape):
            return f"axis {self.axis} of a weight with {len(shape)} axes"
        step = self.group_size or self.cluster_dim
        if shape[self.axis] % step:
            return f"{shape[self.axis]} channels are not a multiple of {step}"
        return ""

    def __str__(self) -> str:
        if self.kind == "linear":
            return f"int{self.nbits}, a scale for each channel of axis {self.axis}"
        parts = [f"{self.nbits} bit" + ("s" if self.nbits > 1 else "")]
        if self.group_size:
            parts.append(f"groups of {self.group_size} along axis {self.axis}")
        if self.cluster_dim > 1:
            parts.append(f"vectors of {self.cluster_dim}")
        if self.per_channel_scale:
            parts.append("scales")
        if self.outlier_share:
            parts.append(f"{100 * self.outlier_share:g} % outliers")
        return ", ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Return `nbits`, and the settings that differ from the defaults."""
        defaults = Compression(self.nbits)
        return {key: value for key, value in asdict(self).items() if key == "nbits" or value != getattr(defaults, key)}

    @classmethod
    def from_json(cls, settings: Mapping[str, Any]) -> "Compression":
        """Return the compression that `to_json` described.

        Raises:
            RecipeError: Unknown keys, values of the wrong type, or settings that contradict each other.
        """
        known = {field.name: field.type for field in fields(cls)}
        unknown = sorted(set(settings) - set(known))
        if unknown:
            raise RecipeError(f"unknown compression settings {', '.join(unknown)}; allowed are {', '.join(known)}")
        if "nbits" not in settings:
            raise RecipeError("a compression without nbits; allowed are " + ", ".join(map(str, NBITS)))
        wrong = [f"{key} is {value!r}" for key, value in settings.items() if not _has_type(key, value)]
        if wrong:
            raise RecipeError("compression settings of the wrong type: " + ", ".join(wrong))
        return cls(**settings)


def _has_type(key: str, value: Any) -> bool:
    if key == "per_channel_scale":
        return isinstance(value, bool)
    if key in ("granularity", "kind"):
        return isinstance(value, str)
    allowed = (int, float) if key == "outlier_share" else (int,)
    return isinstance(value, allowed) and not isinstance(value, bool)


def outlier_count(size: int, compression: Compression) -> int:
    """Return how many of `size` elements are outliers."""
    return math.ceil(size * compression.outlier_share)


def blob_nbytes(count: int, width: int) -> int:
    """Return the bytes of `count` elements of `width` bits in the weights file. 0 when they are in the program."""
    return 0 if count < MIN_BLOB_ELEMENTS else _entry_nbytes(count, width)


def dense_nbytes(shape: Sequence[int]) -> int:
    """Return the bytes of a float16 weight in the weights file."""
    return blob_nbytes(math.prod(shape), 16)


def stored_nbytes(shape: Sequence[int], compression: Compression | None) -> int:
    """Return the bytes of a compressed weight in the weights file. None keeps float16.

    The size is the same for every deployment target that supports the form.
    """
    if compression is None:
        return dense_nbytes(shape)
    size, vector = math.prod(shape), compression.cluster_dim
    total = _entry_nbytes(size // vector, compression.nbits)
    if compression.kind == "palette":
        total += blob_nbytes(math.prod(compression.palettes(shape)) * compression.entries * vector, 16)
    if compression.has_scales:
        total += blob_nbytes(shape[compression.axis], 16)
    if compression.outlier_share:
        total += blob_nbytes(outlier_count(size, compression), 16) + _entry_nbytes(size, 1)
    return total


def _entry_nbytes(count: int, width: int) -> int:
    """Return the bytes of an entry of the weights file. Indices and masks always have one, whatever their size."""
    return _ALIGNMENT + math.ceil(count * width / 8 / _ALIGNMENT) * _ALIGNMENT
