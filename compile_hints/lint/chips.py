"""Figures of each chip's Neural Engine: limits for the lint, rates for the cost model, each with its source.

They are read from `chips.json` beside this module.
"""

from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Generic, TypeVar

from whisperkit_tools.strict_json import parse_json

T = TypeVar("T")
KINDS = ("published", "measured elsewhere", "derived")


@dataclass(frozen=True, slots=True)
class Figure(Generic[T]):
    """A value and where it comes from.

    Attributes:
        value: The value, in the unit that the name of its field ends with.
        kind: `published` by the maker, `measured elsewhere` by others, or `derived` from those as the source says.
        source: Who says so, and where.
    """

    value: T
    kind: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    """A chip and its Neural Engine.

    Attributes:
        name: The name on the command line.
        title: The name in print.
        generation: Chips of one generation have the same rules; its name in print.
        platform: `ios` or `macos`.
        max_rank: Axes that a tensor may have.
        max_width_height: Longest last and last but one axis.
        max_channels_batch: Longest channel and batch axis.
        unsupported: Operations that newer chips have and this one does not.
        rejects_int32_cast: A cast from or to int32 does not compile for it.
        aperture_bytes: Decompressed weights that it can address, or None where no limit is known.
        max_model_bytes: Largest model, or None where no limit is known.
        peak_flops_s: Rate that large products sustain, float16.
        bandwidth_bytes_s: Rate at which weights and spilled tensors stream.
        launch_s: Time that each hand-over to an engine takes at least.
        working_set_bytes: A tensor up to this size stays on the engine.
        stream_gain: By form of compression, the share of the saved bytes that is saved in time; 0 where the form is
            expanded to float16 in memory before use.
    """

    name: str
    title: str
    generation: str
    platform: str
    max_rank: Figure[int]
    max_width_height: Figure[int]
    max_channels_batch: Figure[int]
    unsupported: Figure[tuple[str, ...]]
    rejects_int32_cast: Figure[bool]
    aperture_bytes: Figure[int] | None
    max_model_bytes: Figure[int] | None
    peak_flops_s: Figure[float]
    bandwidth_bytes_s: Figure[float]
    launch_s: Figure[float]
    working_set_bytes: Figure[int]
    stream_gain: dict[str, Figure[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChipTable:
    """All chips, and the figures that they share.

    Attributes:
        chips: By name.
        native: Operations that run on the newest Neural Engine.
        no_path: Operations that run on none.
        max_weight_bytes: Largest single weight tensor, decompressed.
        median_error: Of the cost model's latencies, as a fraction.
        elsewhere_peak_ratio: Peak of the GPU as a fraction of the Neural Engine's.
        elsewhere_bandwidth_ratio: The same of its bandwidth.
    """

    chips: dict[str, Chip]
    native: Figure[frozenset[str]]
    no_path: Figure[frozenset[str]]
    max_weight_bytes: Figure[int]
    median_error: Figure[float]
    elsewhere_peak_ratio: Figure[float]
    elsewhere_bandwidth_ratio: Figure[float]

    def chip(self, name: str) -> Chip:
        """Return the chip of that name; case, blanks and hyphens do not matter.

        Raises:
            ValueError: No chip has the name; lists those that are known.
        """
        plain = name.lower().replace(" ", "").replace("-", "")
        if plain not in self.chips:
            raise ValueError(f"unknown chip {name!r}; known are {', '.join(self.chips)}")
        return self.chips[plain]

    def first_with(self, operation: str) -> str:
        """Return the first generation whose Neural Engine runs operations of this type, empty when none does."""
        return next((chip.generation for chip in self.chips.values() if operation not in chip.unsupported.value), "")


def load_chips() -> ChipTable:
    """Read the table that ships with the package."""
    data = parse_json((files(__package__) / "chips.json").read_bytes())
    operations, elsewhere = data["operations"], data["elsewhere"]
    ios_bytes: Figure[int] = _figure(data["max_ios_model_bytes"])
    return ChipTable(
        chips={name: _chip(name, entry, data["generations"], ios_bytes) for name, entry in data["chips"].items()},
        native=_set(operations["native"]),
        no_path=_set(operations["no_path"]),
        max_weight_bytes=_figure(data["max_weight_bytes"]),
        median_error=_figure(data["median_error"]),
        elsewhere_peak_ratio=_figure(elsewhere["peak_ratio"]),
        elsewhere_bandwidth_ratio=_figure(elsewhere["bandwidth_ratio"]),
    )


def _chip(name: str, entry: dict[str, Any], generations: dict[str, Any], ios_bytes: Figure[int]) -> Chip:
    rules = generations[entry["generation"]]
    unsupported = _figure(rules["unsupported"])
    return Chip(
        name=name,
        title=entry["title"],
        generation=rules["title"],
        platform=entry["platform"],
        max_rank=_figure(rules["max_rank"]),
        max_width_height=_figure(rules["max_width_height"]),
        max_channels_batch=_figure(rules["max_channels_batch"]),
        unsupported=Figure(tuple(unsupported.value), unsupported.kind, unsupported.source),
        rejects_int32_cast=_figure(rules["rejects_int32_cast"]),
        aperture_bytes=_figure(rules["aperture_bytes"]) if "aperture_bytes" in rules else None,
        max_model_bytes=ios_bytes if entry["platform"] == "ios" else None,
        peak_flops_s=_figure(entry["peak_flops_s"]),
        bandwidth_bytes_s=_figure(entry["bandwidth_bytes_s"]),
        launch_s=_figure(entry["launch_s"]),
        working_set_bytes=_figure(rules["working_set_bytes"]),
        stream_gain={form: _figure(figure) for form, figure in rules["stream_gain"].items()},
    )


def _figure(entry: dict[str, Any]) -> Figure[Any]:
    return Figure(entry["value"], entry["kind"], entry["source"])


def _set(entry: dict[str, Any]) -> Figure[frozenset[str]]:
    return Figure(frozenset(entry["value"]), entry["kind"], entry["source"])
