"""From a bundle to a smaller one that passes the quality gate."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, overload

from whisperkit_tools.bundle import Bundle
from whisperkit_tools.compress import compressor
from whisperkit_tools.compress.config import PalettizeConfig, PalettizeResult
from whisperkit_tools.compress.planner import CompressionPlan, CompressionTarget
from whisperkit_tools.errors import OptionsError, option
from whisperkit_tools.pipeline.arguments import as_bundle, as_bytes, as_names, as_tuple, as_widths
from whisperkit_tools.progress import Progress
from whisperkit_tools.quantization.gate import Gate
from whisperkit_tools.quantization.recipe import AllowedCompressions
from whisperkit_tools.quantization.search import SearchOptions

MIXED = "mixed"


@dataclass(frozen=True, slots=True)
class PalettizedBundle(Bundle):
    """A bundle that has just been compressed.

    Attributes:
        path: The folder.
        manifest: The content of its `wkt.json`.
        result: Plan, gate verdict, trials and figures of the compression.
    """

    result: PalettizeResult


@overload
def palettize(
    bundle: Bundle | str | Path | None = ...,
    *,
    bits: str | int | None = ...,
    target_bits: float | None = ...,
    target_size: str | int | None = ...,
    max_kl: float | None = ...,
    recipe: str | Path | None = ...,
    recipe_out: str | Path | None = ...,
    allowed_nbits: str | Sequence[int] | None = ...,
    group_size: int | None = ...,
    allow: str | Sequence[str] = ...,
    keep: str | Sequence[str] = ...,
    tune_palettes: int = ...,
    qoi_min: float = ...,
    wer_delta_max: float = ...,
    confident: bool = ...,
    calibration: str | Path | None = ...,
    gate_audio: str | Path | None = ...,
    allow_overlap: bool = ...,
    reference: str | Path | None = ...,
    gate_examples: int | None = ...,
    windows: int = ...,
    trials: int = ...,
    seed: int = ...,
    output_dir: str | Path | None = ...,
    profile: str | Path | None = ...,
    keep_rejected: bool = ...,
    plot: str | Path | None = ...,
    force: bool = ...,
    dry_run: Literal[True],
    progress: Progress | None = ...,
) -> CompressionPlan: ...


@overload
def palettize(
    bundle: Bundle | str | Path | None = ...,
    *,
    bits: str | int | None = ...,
    target_bits: float | None = ...,
    target_size: str | int | None = ...,
    max_kl: float | None = ...,
    recipe: str | Path | None = ...,
    recipe_out: str | Path | None = ...,
    allowed_nbits: str | Sequence[int] | None = ...,
    group_size: int | None = ...,
    allow: str | Sequence[str] = ...,
    keep: str | Sequence[str] = ...,
    tune_palettes: int = ...,
    qoi_min: float = ...,
    wer_delta_max: float = ...,
    confident: bool = ...,
    calibration: str | Path | None = ...,
    gate_audio: str | Path | None = ...,
    allow_overlap: bool = ...,
    reference: str | Path | None = ...,
    gate_examples: int | None = ...,
    windows: int = ...,
    trials: int = ...,
    seed: int = ...,
    output_dir: str | Path | None = ...,
    profile: str | Path | None = ...,
    keep_rejected: bool = ...,
    plot: str | Path | None = ...,
    force: bool = ...,
    dry_run: Literal[False] = ...,
    progress: Progress | None = ...,
) -> PalettizedBundle: ...


def palettize(
    bundle: Bundle | str | Path | None = None,
    *,
    bits: str | int | None = None,
    target_bits: float | None = None,
    target_size: str | int | None = None,
    max_kl: float | None = None,
    recipe: str | Path | None = None,
    recipe_out: str | Path | None = None,
    allowed_nbits: str | Sequence[int] | None = None,
    group_size: int | None = None,
    allow: str | Sequence[str] = (),
    keep: str | Sequence[str] = (),
    tune_palettes: int = 0,
    qoi_min: float = 95.0,
    wer_delta_max: float = 1.0,
    confident: bool = False,
    calibration: str | Path | None = None,
    gate_audio: str | Path | None = None,
    allow_overlap: bool = False,
    reference: str | Path | None = None,
    gate_examples: int | None = None,
    windows: int = 8,
    trials: int = 8,
    seed: int = 0,
    output_dir: str | Path | None = None,
    profile: str | Path | None = None,
    keep_rejected: bool = False,
    plot: str | Path | None = None,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> PalettizedBundle | CompressionPlan:
    """Compress a bundle to the smallest size that passes the quality gate.

    Args:
        bundle: An opened bundle, its folder, or None for the last converted one.
        bits: `mixed` for the best width of each weight, or one width for all weights. None for `mixed`.
        target_bits: Average bits per element, tables included.
        target_size: Size of encoder and decoder in bytes, or as text such as `600MB`.
        max_kl: Maximum KL divergence from the uncompressed bundle, in nats per token.
        recipe: A recipe file to follow.
        recipe_out: File to write the recipe to.
        allowed_nbits: Bit widths that `mixed` may use. None for all but 1.
        group_size: Channels that share a palette (iOS 18). None for 8, 16 and 32 where they pay off.
        allow: Further forms that `mixed` may use: `vectors`, `scales`, `outliers`.
        keep: Patterns of weights that stay float16, `NAME` or `COMPONENT/NAME`.
        tune_palettes: Steps of gradient tuning of the palettes.
        qoi_min: Minimum percentage of gate examples that are no worse.
        wer_delta_max: Maximum rise of the word error rate, in percentage points.
        confident: Judge by the pessimistic end of each 95 % interval.
        calibration: The speech on which sensitivity is measured: a named dataset, a dataset's folder, a Hub id, or a
            folder of audio. None for the demo's.
        gate_audio: The gate's examples, named in the same way. Audio in a folder has its transcript in a `.txt` beside
            it, or else the uncompressed bundle's counts as true. None for the demo's.
        allow_overlap: Let the gate judge on recordings that were used for calibration or tuning.
        reference: The bundle to compare with. None for the uncompressed one.
        gate_examples: Maximum number of gate examples. None for all.
        windows: Maximum number of calibration windows.
        trials: Maximum number of candidates of a search.
        seed: Random seed.
        output_dir: The folder that holds bundles. None for that of `bundle`.
        profile: Folder for measurements that later runs reuse. None for `.profiles` beside the bundle.
        keep_rejected: Keep a result that does not pass, under a name that cannot be published.
        plot: A `.png` file for divergence against size, predicted and measured, beside ggml's block formats.
        force: Replace an existing bundle.
        dry_run: Return the plan and make nothing. A search is planned at the size where it starts.
        progress: Receives stages, notes and counts.

    Returns:
        The compressed bundle, or the plan with `dry_run`.

    Raises:
        OptionsError: A value is unknown, out of range, or contradicts another one.
        BundleError: The bundle cannot be compressed, or the result exists already.
        RecipeError: The recipe or the restrictions do not fit the model.
        AudioError: There is no calibration or gate audio.
        DatasetError: A dataset with it cannot be found or read.
        QualityGateError: Nothing passes the gate.

    Example:
        >>> import whisperkit_tools as wkt
        >>> bundle = "bundles/acme_whisper-demo"
        >>> small = wkt.palettize(bundle, bits=8, windows=1, gate_examples=2, output_dir="compressed")
        >>> small.result.verdict.passed
        True
    """
    config = PalettizeConfig(
        target=_target(bits, target_bits, target_size, max_kl, recipe),
        allowed=AllowedCompressions(as_widths(allowed_nbits), group_size, as_tuple(keep), forms=as_names(allow)),
        gate=Gate(qoi_min, wer_delta_max, max_kl, confident, seed),
        output_dir=_path(output_dir),
        calibration=calibration,
        gate_audio=gate_audio,
        reference=_path(reference),
        gate_examples=gate_examples,
        windows=windows,
        seed=seed,
        tune_steps=tune_palettes,
        search=SearchOptions(trials=trials),
        profile_dir=_path(profile),
        recipe_out=_path(recipe_out),
        plot=_path(plot),
        force=force,
        keep_rejected=keep_rejected,
        allow_overlap=allow_overlap,
    )
    if dry_run:
        return compressor.plan(as_bundle(bundle), config, progress)
    result = compressor.palettize(as_bundle(bundle), config, progress)
    opened = Bundle.open(result.path)
    return PalettizedBundle(opened.path, opened.manifest, result)


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)


def _target(
    bits: str | int | None,
    target_bits: float | None,
    target_size: str | int | None,
    max_kl: float | None,
    recipe: str | Path | None,
) -> CompressionTarget | None:
    """Return how far to compress, or None for a search.

    Raises:
        OptionsError: A value is not what the option takes, or several targets are named.
    """
    uniform = None if bits in (None, MIXED) else _width(bits)
    given = (uniform, target_bits, as_bytes(target_size), max_kl, _path(recipe))
    if all(value is None for value in given):
        return None
    return CompressionTarget(
        nbits=given[0], target_bits=given[1], target_bytes=given[2], max_kl=given[3], recipe=given[4]
    )


def _width(bits: str | int | None) -> int:
    if not str(bits).isdigit():
        raise OptionsError(f"{option('bits')}: {bits!r} is neither {MIXED!r} nor a number of bits")
    return int(str(bits))
