"""Settings of a compression, and its result."""

from dataclasses import dataclass, field
from pathlib import Path

from whisperkit_tools.compress.measured_sizes import FormatComparison
from whisperkit_tools.compress.planner import CompressionPlan, CompressionTarget
from whisperkit_tools.errors import OptionsError, option
from whisperkit_tools.quantization.gate import Gate, Verdict
from whisperkit_tools.quantization.recipe import AllowedCompressions
from whisperkit_tools.quantization.search import SearchOptions, SearchTrial


@dataclass(frozen=True, slots=True)
class PalettizeConfig:
    """Settings of a compression.

    Attributes:
        target: How far to compress. None searches for the smallest bundle that passes the gate.
        allowed: The compressions that may be used.
        gate: The limits that the result must meet.
        output_dir: The folder that holds bundles. None for the folder that holds the bundle.
        calibration: Folder or dataset with calibration audio. None for the demo's.
        gate_audio: Folder or dataset with the gate's examples. None for the demo's.
        reference: The bundle that the gate compares with. None for the uncompressed one.
        windows: Maximum number of calibration windows.
        max_tokens: Maximum number of predicted tokens that count per window.
        gate_examples: Maximum number of gate examples. None for all.
        samples: Random cotangents per window. None for as many as the model's size allows in reasonable time.
        seed: Seed of all random draws.
        tune_steps: Number of palette tuning steps. 0 for no tuning.
        search: Settings of the search.
        profile_dir: Folder of the sensitivity caches. None for a folder beside the bundle.
        recipe_out: File to which the recipe is written. None for no file.
        plot: PNG file to which divergence against size is plotted, beside that of ggml's block formats, which are
            measured for it. None for no plot.
        force: Replace an existing bundle.
        keep_rejected: Keep a bundle that does not pass the gate, under a name that says so.
        allow_overlap: Let the gate judge on recordings that were used for calibration or tuning.
    """

    target: CompressionTarget | None = None
    allowed: AllowedCompressions = field(default_factory=AllowedCompressions)
    gate: Gate = field(default_factory=Gate)
    output_dir: Path | None = None
    calibration: str | Path | None = None
    gate_audio: str | Path | None = None
    reference: Path | None = None
    windows: int = 8
    max_tokens: int = 128
    gate_examples: int | None = None
    samples: int | None = None
    seed: int = 0
    tune_steps: int = 0
    search: SearchOptions = field(default_factory=SearchOptions)
    profile_dir: Path | None = None
    recipe_out: Path | None = None
    plot: Path | None = None
    force: bool = False
    keep_rejected: bool = False
    allow_overlap: bool = False

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            OptionsError: A value is out of range. The message names all of them.
        """
        minima = (
            (option("windows"), self.windows, 1),
            (option("tune_steps"), self.tune_steps, 0),
            (option("gate_examples"), self.gate_examples, 1),
            ("max_tokens", self.max_tokens, 1),
            ("samples", self.samples, 1),
        )
        problems = [
            f"{name} is {value}, expected {minimum} or more"
            for name, value, minimum in minima
            if value is not None and value < minimum
        ]
        if self.plot is not None and self.plot.suffix.lower() != ".png":
            problems.append(f"{option('plot')} is {self.plot}, which does not end in .png")
        if problems:
            raise OptionsError("; ".join(problems))


@dataclass(frozen=True, slots=True)
class PalettizeResult:
    """A compressed bundle.

    Attributes:
        path: Its folder.
        plan: The compression that was made.
        verdict: The gate's figures and decision.
        trials: The trials of the search. One entry without a search.
        nbytes: Bytes of encoder and decoder.
        psnr_db: For each component the PSNR of the written package against the intended weights.
        tuning: Mean divergence on the calibration speech before and after tuning. None without tuning.
        compared: The comparison with block formats. None without a plot.
    """

    path: Path
    plan: CompressionPlan
    verdict: Verdict
    trials: tuple[SearchTrial, ...]
    nbytes: int
    psnr_db: dict[str, float]
    tuning: tuple[float, float] | None
    compared: FormatComparison | None = None
