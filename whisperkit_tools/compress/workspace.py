"""The state of one compression: the opened bundle, its planner, and the speech that has been transcribed so far."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from whisperkit_tools import contract
from whisperkit_tools.bundle import Bundle
from whisperkit_tools.compress.audio_selection import (
    SpeechPiece,
    recording_sha256,
    samples_of,
    select_calibration,
    select_gate,
    select_held_out,
    select_sentences,
)
from whisperkit_tools.compress.candidate_store import CandidateStore
from whisperkit_tools.compress.config import PalettizeConfig
from whisperkit_tools.compress.gate_measurement import (
    GateMeasurement,
    ReferenceTranscriber,
    calibration_windows,
    known_languages,
    spoken_windows,
    tuning_windows,
)
from whisperkit_tools.compress.manifest_section import original_of
from whisperkit_tools.compress.overlap import overlapping, require_no_overlap
from whisperkit_tools.compress.plan_measurement import PlanMeasurement
from whisperkit_tools.compress.planner import Planner
from whisperkit_tools.compress.weight_inventory import WeightInventory
from whisperkit_tools.decoder.teacher_forcing import SpeechWindow
from whisperkit_tools.errors import BundleError
from whisperkit_tools.memory import available_memory, release_memory
from whisperkit_tools.mil.backend import TensorModel
from whisperkit_tools.progress import Progress, SilentProgress
from whisperkit_tools.quantization.sensitivity import FisherOptions, reference_logits
from whisperkit_tools.quantization.sensitivity_cache import SensitivityCache, SensitivityKey

CACHES = ".profiles"
_MAX_TUNING_SENTENCES = 64
_LARGE = 1 << 26  # elements
_SMALL = 1 << 24


@dataclass(frozen=True, slots=True)
class TuningSpeech:
    """Speech for palette tuning.

    Attributes:
        windows: Windows of a sentence each.
        references: The uncompressed bundle's logits `[predicted, V]` of each window.
        judging: Indices of the windows that judge.
    """

    windows: list[SpeechWindow]
    references: list[Tensor]
    judging: list[int]


@dataclass(slots=True)
class Workspace:
    """The state of one run.

    The last six fields are None until a stage needs them. A run that finds its results in the cache never does.

    Attributes:
        bundle: The uncompressed bundle.
        config: The settings.
        progress: Told of stages, notes and counts.
        weights: The uncompressed weights.
        planner: The planner, with the sensitivity cache.
        candidates: The store of measured candidates.
        fisher: Settings of the sensitivity's estimation.
        calibration: The calibration audio.
        mel: The spectrogram, which remembers features.
        windows: The transcribed calibration windows.
        held_out: Transcribed windows that calibration did not take.
        plans: The measurement of plans on them.
        tuning: The speech for tuning.
        gate: The gate's examples.
        overlapping: Number of them from recordings that are used for calibration or tuning.
        measurement: The gate's measurement.
    """

    bundle: Bundle
    config: PalettizeConfig
    progress: Progress
    weights: WeightInventory
    planner: Planner
    candidates: CandidateStore
    fisher: FisherOptions
    calibration: list[SpeechPiece]
    mel: TensorModel | None = None
    windows: list[SpeechWindow] | None = None
    held_out: list[SpeechWindow] | None = None
    plans: PlanMeasurement | None = None
    tuning: TuningSpeech | None = None
    gate: list[SpeechPiece] | None = None
    overlapping: int | None = None
    measurement: GateMeasurement | None = None

    def reference(self) -> ReferenceTranscriber:
        """Load the uncompressed bundle. Callers drop it before loading anything of similar size."""
        release_memory()
        found = ReferenceTranscriber(self.bundle, self.config.max_tokens, self.mel)
        self.mel = found.mel
        return found

    def calibration_windows(self) -> list[SpeechWindow]:
        """Return the calibration windows. The first call transcribes them."""
        if self.windows is None:
            with self.progress.stage("calibration", "transcribe"):
                self.windows = calibration_windows(self.reference(), self.calibration)
        return self.windows

    def plan_measurement(self) -> PlanMeasurement:
        """Return the measurement of plans on speech that calibration did not take. The first call transcribes it.

        Where the source has no other speech, plans are measured on the calibration speech itself.
        """
        if self.held_out is None:
            samples = window_samples(self.bundle)
            pieces = select_held_out(self.config.calibration, self.config.windows, samples, self.calibration)
            with self.progress.stage("held-out speech", "transcribe"):
                windows = spoken_windows(self.reference(), pieces)
            if not windows:
                self.progress.note("plans are measured on the calibration speech, because there is no other")
            self.held_out = windows or self.calibration_windows()
            release_memory()
        if self.plans is None:
            self.plans = PlanMeasurement(self.weights, self.held_out)
        return self.plans

    def tuning_speech(self) -> TuningSpeech:
        """Return the speech for tuning. The first call transcribes it."""
        if self.tuning is None:
            steps = self.config.tune_steps
            with self.progress.stage("tuning", "transcribe"):
                windows, judging = tuning_windows(self.reference(), self.config.calibration, self._sentences, steps)
                release_memory()
                self.tuning = TuningSpeech(windows, reference_logits(self.weights.packages, windows), judging)
        return self.tuning

    def gate_measurement(self) -> GateMeasurement:
        """Return the gate's measurement. The first call transcribes the examples with the reference."""
        if self.measurement is None:
            uncompressed, other, examples = self.reference(), self.config.reference, self.gate_examples()
            reference = uncompressed
            if other is not None:
                reference = ReferenceTranscriber(Bundle.open(other), self.config.max_tokens)
            with self.progress.stage("gate", "reference"):
                self.measurement = GateMeasurement(reference, examples, uncompressed, self.progress)
            if self.measurement.without_text:
                self.progress.note(
                    f"{self.measurement.without_text} of the gate's {len(examples)} examples have no text; the "
                    "uncompressed bundle's own transcript counts as true there"
                )
        return self.measurement

    def gate_examples(self) -> list[SpeechPiece]:
        """Return the gate's examples. The first call decodes them.

        Raises:
            AudioError: There is no audio for the gate.
            DatasetError: Its dataset cannot be found or read.
        """
        if self.gate is None:
            languages, length = known_languages(self.bundle), window_samples(self.bundle)
            source, limit = self.config.gate_audio, self.config.gate_examples
            self.gate = select_gate(source, limit, languages, length, self.progress)
        return self.gate

    def overlap(self) -> int:
        """Return how many of the gate's examples come from recordings that are used for calibration or tuning.

        Raises:
            OptionsError: Some do, and the settings do not allow it.
        """
        if self.overlapping is None:
            examples, heard = self.gate_examples(), list(self.calibration)
            if self.config.tune_steps:
                heard += select_sentences(self.config.calibration, self._sentences, window_samples(self.bundle))
            found = overlapping(examples, heard)
            require_no_overlap(self.config, examples, found)
            self.overlapping = len(found)
        return self.overlapping

    @property
    def _sentences(self) -> int:
        return min(self.config.tune_steps, _MAX_TUNING_SENTENCES)

    def comparison_windows(self, limit: int) -> list[SpeechWindow]:
        """Transcribe gate examples of at most a window, evenly selected, for the comparison with block formats."""
        reference = self.reference()
        short = [item for item in self.gate_examples() if len(samples_of(item)) <= reference.models.sizes.n_samples]
        chosen = short[:: -(-len(short) // limit) or 1]
        with self.progress.stage("comparison", "transcribe"):
            heard = [reference.transcribe(item, whole=False) for item in chosen]
        return [item.window for item in heard if item is not None and item.window is not None]

    def gate_identity(self) -> dict[str, Any]:
        """Return digests of the bundles that the gate compares, and of its examples.

        Raises:
            AudioError: There is no audio for the gate.
            BundleError: There is no such reference.
        """
        other = self.config.reference
        bundles = [self.bundle] if other is None else [self.bundle, Bundle.open(other)]
        clips = [[recording_sha256(item), item.text, item.language] for item in self.gate_examples()]
        return {"files": [bundle.content_sha256() for bundle in bundles], "clips": clips}


def open_workspace(bundle: Bundle, config: PalettizeConfig, progress: Progress | None = None) -> Workspace:
    """Open a bundle and its sensitivity cache, and check everything that can be checked before any work.

    Args:
        bundle: The bundle to compress. A compressed one is replaced by its uncompressed original.
        config: The settings.
        progress: Told of stages, notes and counts.

    Raises:
        BundleError: The bundle is compressed already and its original is gone, or memory is insufficient.
        OptionsError: The settings do not fit the model.
        RecipeError: The recipe file is malformed or belongs to another model.
        AudioError: There is no calibration audio.
        DatasetError: The calibration's dataset cannot be found or read.
    """
    progress = progress or SilentProgress()
    bundle = original_of(bundle, progress)
    weights = WeightInventory(bundle)
    _require_memory(weights)
    calibration = select_calibration(config.calibration, config.windows, window_samples(bundle), progress)
    fisher = FisherOptions(config.samples or _default_samples(weights.elements), config.seed)
    settings = {"samples": fisher.samples, "seed": config.seed, "max_tokens": config.max_tokens}
    key = SensitivityKey(weights.weights_sha256(), [recording_sha256(item) for item in calibration], settings)
    root = config.profile_dir or bundle.path.resolve().parent / CACHES / bundle.name
    cache = SensitivityCache(root, key, progress.note)
    planner = Planner(weights, cache, config.allowed, progress)
    if config.target is not None:
        planner.check(config.target)
    return Workspace(
        bundle=bundle,
        config=config,
        progress=progress,
        weights=weights,
        planner=planner,
        candidates=CandidateStore(cache.path),
        fisher=fisher,
        calibration=calibration,
    )


def _default_samples(elements: int) -> int:
    """Return the number of Hutchinson samples per window for a model of a size.

    More samples reduce the variance of each weight's estimate. On the demo model grouped palettes, which are fitted to
    few weights each, beat one palette a weight at every size with eight samples, but not with two.
    """
    return 8 if elements <= _SMALL else 2 if elements <= _LARGE else 1


def window_samples(bundle: Bundle) -> int:
    """Return the number of samples that a bundle's spectrogram takes.

    Raises:
        BundleError: The spectrogram takes audio of any length.
    """
    shape = bundle.package(contract.MEL).graph().inputs[contract.AUDIO].shape
    if len(shape) != 1 or shape[0] is None:
        raise BundleError(f"{bundle.path}: {contract.MEL} takes audio of no fixed length; convert the model again")
    return shape[0]


def needed_memory(weights: WeightInventory) -> int:
    """Return the peak memory of the sensitivity pass in bytes: weights, gradients and squares of the larger half."""
    return 12 * weights.largest_component + (6 << 30 if weights.elements > _LARGE else 3 << 29)


def _require_memory(weights: WeightInventory) -> None:
    need, there = needed_memory(weights), available_memory()
    if there is not None and there < need:
        raise BundleError(
            f"measuring this model's sensitivity takes about {need / 1e9:.1f} GB of memory, and {there / 1e9:.1f} GB "
            "are free; close other programs or use a machine with more"
        )
