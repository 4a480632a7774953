"""What a compression is to be, and what came of it."""

from dataclasses import dataclass, field
from pathlib import Path

from whisperkit_tools.compress.candidate_store import Measured
from whisperkit_tools.compress.planner import Aim
from whisperkit_tools.errors import OptionsError
from whisperkit_tools.quantization.gate import Gate, Verdict
from whisperkit_tools.quantization.recipe import Recipe, Wishes
from whisperkit_tools.quantization.search import SearchOptions, Trial


@dataclass(frozen=True, slots=True)
class PalettizeConfig:
    """What to make.

    Attributes:
        aim: How far to compress; None searches for the smallest bundle that passes the gate.
        wishes: What is allowed.
        gate: What the result must reach.
        output_dir: The folder that holds bundles; None for that of the bundle.
        calibration: Folder or dataset with calibration audio; None for the demo's.
        gate_audio: Folder or dataset with the gate's examples; None for the demo's utterances.
        reference: The bundle that the gate compares with; None for the uncompressed one.
        windows: Most calibration windows.
        max_tokens: Most predicted tokens that count of a window.
        gate_examples: Most examples of the gate; None for all.
        samples: Random cotangents a window; None for as many as the model's size lets pass in reasonable time.
        seed: Of everything that is drawn.
        tune_steps: Steps of palette tuning; 0 for none.
        search: How far to search.
        profile_dir: Where profiles are kept; None beside the bundle.
        force: Replace an existing bundle.
        keep_rejected: Keep what does not pass, under a name that says so.
    """

    aim: Aim | None = None
    wishes: Wishes = field(default_factory=Wishes)
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
    force: bool = False
    keep_rejected: bool = False

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            OptionsError: One is out of range; all of them are named.
        """
        least = {"windows": 1, "max_tokens": 1, "tune_steps": 0}
        wrong = [f"{name} is {getattr(self, name)}, at least {low}" for name, low in least.items()
                 if getattr(self, name) < low]  # fmt: skip
        if wrong:
            raise OptionsError("; ".join(wrong))


@dataclass(frozen=True, slots=True)
class Plan:
    """What would be done.

    Attributes:
        bundle: The uncompressed bundle.
        recipe: What is done to each weight.
        gap: How much better the allocation could be at most, relatively.
        nbytes: Bytes of encoder and decoder.
        original_nbytes: The same of the uncompressed bundle.
        bits: Bits an element, tables and all, over the weights that can be compressed.
    """

    bundle: Path
    recipe: Recipe
    gap: float
    nbytes: int
    original_nbytes: int
    bits: float


@dataclass(frozen=True, slots=True)
class Palettization:
    """A bundle that was made.

    Attributes:
        path: Its folder.
        plan: What was done.
        verdict: What the gate found.
        trials: The search path; one entry without a search.
        psnr_db: Of the written packages against the intended weights.
        tuning: Mean divergence on the calibration speech before and after tuning; None untuned.
    """

    path: Path
    plan: Plan
    verdict: Verdict
    trials: tuple[Trial, ...]
    psnr_db: dict[str, float]
    tuning: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Made:
    """A candidate that was made and judged.

    Attributes:
        measured: What was written, and what was measured on it.
        plan: What was done.
        verdict: What the gate found.
    """

    measured: Measured
    plan: Plan
    verdict: Verdict
