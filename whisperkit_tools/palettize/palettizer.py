"""A bundle to a smaller one: sensitivity, recipe, palettes, tuning, verification and the gate, in that order."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from whisperkit_tools.bundle import MANIFEST, Bundle, folder_bytes, new_bundle, sha256, variant_name, write_manifest
from whisperkit_tools.errors import BundleError, QualityGateError, RecipeError
from whisperkit_tools.memory import available_memory
from whisperkit_tools.palettize.build import verify_packages, write_packages
from whisperkit_tools.palettize.examination import Examination, Listener, calibration_windows, tuning_windows
from whisperkit_tools.palettize.plan import Aim, Model, Planner, Ticks
from whisperkit_tools.palettize.speech import Clip, calibration_clips, gate_clips
from whisperkit_tools.progress import Progress, SilentProgress
from whisperkit_tools.quantization.gate import Gate, Verdict
from whisperkit_tools.quantization.palette import Palettized
from whisperkit_tools.quantization.profile import Profile, ProfileKey
from whisperkit_tools.quantization.recipe import Recipe, Wishes
from whisperkit_tools.quantization.search import Search, SearchOptions, Trial, search
from whisperkit_tools.quantization.sensitivity import FisherOptions, reference_logits
from whisperkit_tools.quantization.teacher import COMPONENTS, Window
from whisperkit_tools.quantization.tuning import Tuning, TuningOptions

PROFILES = ".profiles"
REJECTED = ".rejected"
_START_BITS = 4.5
_MARGIN = 0.9
_MOST_TUNING_SENTENCES = 64
_SCRATCH = "candidates-"
_LARGE = 1 << 26  # elements
_SMALL = 1 << 24


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
            RecipeError: One is out of range; all of them are named.
        """
        least = {"windows": 1, "max_tokens": 1, "tune_steps": 0}
        wrong = [f"{name} is {getattr(self, name)}, at least {low}" for name, low in least.items()
                 if getattr(self, name) < low]  # fmt: skip
        if wrong:
            raise RecipeError("; ".join(wrong))


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


def original_of(bundle: Bundle, progress: Progress) -> Bundle:
    """The bundle itself, or the one it was compressed from.

    Raises:
        BundleError: It was compressed, and what it was made from is gone or changed.
    """
    recorded = bundle.manifest.get("compression", {}).get("original")
    if not isinstance(recorded, dict):
        return bundle
    place = bundle.path / str(recorded.get("path", ""))
    way_out = "pass the uncompressed bundle, or convert the model again"
    if not (place / MANIFEST).is_file():
        raise BundleError(f"{bundle.path} is compressed already, and its original is not at {place}; {way_out}")
    if sha256(place / MANIFEST) != recorded.get("sha256"):
        raise BundleError(f"{bundle.path} is compressed already, and {place} is no longer its original; {way_out}")
    progress.note(f"{bundle.name} is compressed already; working from its original {place.resolve().name}")
    return Bundle.open(place)


class Palettizer:
    """One run: what has been loaded and found out so far."""

    def __init__(
        self, bundle: Bundle, config: PalettizeConfig, progress: Progress | None = None, ticks: Ticks | None = None
    ) -> None:
        """Open the model and its profile, and check what can be checked before any work.

        Args:
            bundle: The bundle to compress.
            config: What to make.
            progress: Told of stages and notes.
            ticks: Told how many tensors or steps are done.

        Raises:
            BundleError: The bundle is compressed already, or the memory does not suffice.
            RecipeError: The wishes do not fit the model.
            AudioError: There is no calibration audio.
        """
        self.config = config
        self.progress: Progress = progress or SilentProgress()
        self._ticks: Ticks = ticks or (lambda what, done, total: None)
        self.bundle = original_of(bundle, self.progress)
        self.model = Model(self.bundle)
        _require_memory(self.model)
        samples = _window_samples(self.bundle)
        self._clips: list[Clip] = calibration_clips(config.calibration, config.windows, samples)
        self._fisher = FisherOptions(config.samples or _samples(self.model.elements), config.seed)
        settings = {"samples": self._fisher.samples, "seed": config.seed, "max_tokens": config.max_tokens}
        key = ProfileKey(self.model.weights_sha256(), [clip.sha256 for clip in self._clips], settings)
        root = config.profile_dir or self.bundle.path.resolve().parent / PROFILES / self.bundle.name
        self.planner = Planner(self.model, Profile(root, key), config.wishes, self._ticks)

    @cached_property
    def _listener(self) -> Listener:
        return Listener(self.bundle, self.config.max_tokens)

    @cached_property
    def windows(self) -> list[Window]:
        """The calibration windows, transcribed by the uncompressed bundle."""
        with self.progress.stage("calibration", "transcribe"):
            return calibration_windows(self._listener, self._clips)

    @cached_property
    def tuning_speech(self) -> tuple[list[Window], list[Tensor], list[int]]:
        """Windows of a sentence each, the uncompressed bundle's logits of them, and the indices of those that judge."""
        steps = self.config.tune_steps
        with self.progress.stage("tuning", "transcribe"):
            most = min(steps, _MOST_TUNING_SENTENCES)
            windows, judging = tuning_windows(self._listener, self.config.calibration, most, steps)
            return windows, reference_logits(self.model.packages, windows), judging

    @cached_property
    def _examination(self) -> Examination:
        languages = ("en", *self._listener.transcriber.special.languages)
        clips = gate_clips(
            self.config.gate_audio, self.config.gate_examples, languages, self._listener.models.sizes.n_samples
        )
        reference = self._listener
        if self.config.reference is not None:
            reference = Listener(Bundle.open(self.config.reference), self.config.max_tokens)
        with self.progress.stage("gate", "reference"):
            examination = Examination(reference, clips, self._listener)
        if examination.without_text:
            self.progress.note(
                f"{examination.without_text} of the gate's examples have no text beside them; the uncompressed "
                "bundle's own transcript counts as true there"
            )
        return examination

    # --- planning ----------------------------------------------------------------------------------------------------

    def sense(self) -> None:
        """Make sure that the profile knows the curvature."""
        with self.progress.stage("sensitivity", "profile"):
            self.planner.sense(lambda: self.windows, self._fisher)

    def plan(self, aim: Aim) -> Plan:
        """Decide what is done for an aim."""
        self.sense()
        return self._as_plan(*self.planner.recipe(aim))

    def _as_plan(self, recipe: Recipe, gap: float) -> Plan:
        return Plan(
            bundle=self.bundle.path,
            recipe=recipe,
            gap=gap,
            nbytes=self.planner.predicted_nbytes(recipe),
            original_nbytes=self.model.nbytes,
            bits=8 * recipe.nbytes / self.model.elements,
        )

    def bounds(self) -> tuple[int, int]:
        """The smallest and the largest size of encoder and decoder that a search considers."""
        least, most = (self.planner.predicted_nbytes(self.planner.extreme(smallest=end)) for end in (True, False))
        return least, max(least, most)

    # --- making ------------------------------------------------------------------------------------------------------

    def palettes(self, recipe: Recipe) -> dict[str, dict[str, Palettized]]:
        """The compressed weights of a recipe, by component and name."""
        found: dict[str, dict[str, Palettized]] = {name: {} for name in COMPONENTS}
        for number, (key, entry) in enumerate(recipe.entries.items(), start=1):
            if entry.option is not None:
                found[key[0]][key[1]] = self.planner.palette(key, entry.option)
            self._ticks("palettes", number, len(recipe.entries))
        return found

    def tuned(
        self, palettes: dict[str, dict[str, Palettized]]
    ) -> tuple[dict[str, dict[str, Palettized]], tuple[float, float] | None]:
        """The palettes after tuning, and the mean divergence before and after."""
        steps = self.config.tune_steps
        if not steps or not any(palettes.values()):
            return palettes, None
        options = TuningOptions(steps, seed=self.config.seed)
        windows, references, judging = self.tuning_speech
        tuning = Tuning(self.model.packages, palettes, windows, references, options, judging)
        figures = tuning.run(lambda number, _: self._ticks("tuning", number, steps), self.planner.profile)
        found = tuning.result()
        return {name: found.get(name, {}) for name in COMPONENTS}, figures

    def make(self, plan: Plan, folder: Path) -> "_Made":
        """Write, verify and measure a candidate in a folder."""
        palettes, tuning = self.tuned(self.palettes(plan.recipe))
        write_packages(self.bundle, palettes, folder)
        with self.progress.stage("candidate", "verify"):
            figures = verify_packages(self.bundle, palettes, folder, self.windows[0])
        nbytes = sum(folder_bytes(folder / f"{name}.mlpackage") for name in COMPONENTS)
        with self.progress.stage("candidate", "gate"):
            verdict = self.config.gate.judge(self._examination.measure(folder))
        return _Made(folder, plan, nbytes, verdict, figures, tuning)

    def run(self) -> Palettization:
        """Make the bundle.

        Raises:
            QualityGateError: Nothing passes the gate.
            BundleError: The bundle exists.
        """
        self.sense()
        with self._scratch() as scratch:
            trials, made = self._search(scratch) if self.config.aim is None else self._reach(self.config.aim, scratch)
            chosen = made[-1] if self.config.aim is not None else _best(made, trials)
            if not chosen.verdict.passed:
                self._reject(chosen, trials)
            target = self.target(chosen.nbytes)
            self._publish(chosen, trials, target)
        return Palettization(target, chosen.plan, chosen.verdict, trials.trials, chosen.psnr_db, chosen.tuning)

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        root = self.planner.profile.path
        for old in root.glob(f"{_SCRATCH}*"):
            if not _is_running(int(old.name.split("-")[1])):
                shutil.rmtree(old, ignore_errors=True)  # what a killed run left
        folder = Path(tempfile.mkdtemp(prefix=f"{_SCRATCH}{os.getpid()}-", dir=root))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _attempt(self, plan: Plan, budget_bytes: int, scratch: Path, made: list["_Made"]) -> Trial:
        folder = scratch / str(len(made))
        folder.mkdir()
        made.append(self.make(plan, folder))
        self._ticks("candidates", len(made), self.config.search.trials)
        trial = Trial(budget_bytes, made[-1].nbytes, made[-1].verdict)
        self.progress.note(describe(trial))
        return trial

    def _search(self, scratch: Path) -> tuple[Search, list["_Made"]]:
        made: list[_Made] = []
        least, most = self.bounds()
        start = self.model.fixed_nbytes + int(_START_BITS * self.model.elements / 8)

        def attempt(nbytes: int) -> Trial:
            return self._attempt(self._as_plan(*self.planner.within(nbytes)), nbytes, scratch, made)

        return search(least, most, attempt, self.config.search, start), made

    def _reach(self, aim: Aim, scratch: Path) -> tuple[Search, list["_Made"]]:
        """Make what was asked for; where a divergence was, try again with less until it is measured."""
        made: list[_Made] = []
        trials: list[Trial] = []
        for _ in range(self.config.search.trials if aim.max_kl is not None else 1):
            plan = self.plan(aim)
            target = self.target(plan.nbytes)
            if target.exists() and not self.config.force:
                raise BundleError(f"{target} already exists; replace it with --force, or choose another place with -o")
            trials.append(self._attempt(plan, plan.nbytes, scratch, made))
            measured, limit = trials[-1].verdict.kl_divergence.value, self.config.gate.max_kl
            if aim.max_kl is None or limit is None or measured <= limit:
                break
            aim = Aim(max_kl=_MARGIN * aim.max_kl * limit / measured)
        return Search(tuple(trials)), made

    # --- putting into place ------------------------------------------------------------------------------------------

    def target(self, nbytes: int) -> Path:
        """The folder of a bundle of a size."""
        root = self.config.output_dir or self.bundle.path.resolve().parent
        source = self.bundle.manifest.get("source", {})
        if "org" not in source or "model" not in source:
            return root / f"{self.bundle.name}_{int(nbytes / 1e6)}MB"
        turbo = bool(self.bundle.manifest.get("conversion", {}).get("turbo"))
        return root / variant_name(source["org"], source["model"], turbo=turbo, size_bytes=nbytes)

    def _publish(self, chosen: "_Made", trials: Search, target: Path, *, rejected: bool = False) -> None:
        with new_bundle(target, force=self.config.force) as partial:
            shutil.copytree(chosen.folder, partial, dirs_exist_ok=True)
            write_manifest(partial, self._manifest(chosen, trials, target, rejected=rejected))

    def _reject(self, chosen: "_Made", trials: Search) -> None:
        nearest = "; ".join(chosen.verdict.shortfalls)
        where = "nothing was published"
        if self.config.keep_rejected:
            target = self.target(chosen.nbytes)
            target = target.with_name(target.name + REJECTED)
            self._publish(chosen, trials, target, rejected=True)
            where = f"it is kept at {target}"
        count = len(trials.trials)
        tried = f"none of {count} candidates passes the gate; the nearest" if count > 1 else "the candidate"
        raise QualityGateError(f"{tried} ({chosen.nbytes / 1e6:.3f} MB) is not good enough: {nearest}; {where}")

    def _manifest(self, chosen: "_Made", trials: Search, target: Path, *, rejected: bool) -> dict[str, Any]:
        inherited = {
            name: value for name, value in self.bundle.manifest.items() if name not in ("format", "created", "files")
        }
        original = self.bundle.path.resolve()
        recorded = original / MANIFEST
        return {
            **inherited,
            "variant": target.name,
            "compression": {
                "rejected": rejected,
                "original": {
                    "name": self.bundle.name,
                    "path": os.path.relpath(original, target.resolve()),
                    "sha256": sha256(recorded) if recorded.is_file() else None,
                },
                "recipe": chosen.plan.recipe.to_json(),
                "allocation_gap": chosen.plan.gap,
                "predicted_nbytes": chosen.plan.nbytes,
                "nbytes": chosen.nbytes,
                "psnr_db": chosen.psnr_db,
                "tuning": None if chosen.tuning is None else {
                    "steps": self.config.tune_steps, "kl_before": chosen.tuning[0], "kl_after": chosen.tuning[1],
                },
                "gate": {**asdict(self.config.gate), **asdict(chosen.verdict)},
                "path": [describe(trial) for trial in trials.trials],
                "calibration": self.planner.profile.path.name,
            },
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Made:
    folder: Path
    plan: Plan
    nbytes: int
    verdict: Verdict
    psnr_db: dict[str, float]
    tuning: tuple[float, float] | None


def _best(made: list[_Made], trials: Search) -> _Made:
    wanted = trials.best or trials.nearest
    return made[trials.trials.index(wanted)]


def describe(trial: Trial) -> str:
    """A trial in one line."""
    verdict = trial.verdict
    return (
        f"{trial.nbytes / 1e6:9.3f} MB  KL {verdict.kl_divergence.value:.5f}  QoI {verdict.qoi.value:6.2f} % "
        f"({verdict.qoi.low:.1f} to {verdict.qoi.high:.1f})  WER {verdict.wer.value:.2f} % "
        f"({verdict.wer_delta.value:+.2f})  tokens {verdict.token_agreement.value:.2f} %  "
        f"{'pass' if verdict.passed else 'fail'}"
    )


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _samples(elements: int) -> int:
    """Random cotangents a window.

    The more, the surer what single weights count. On the demo model grouped palettes, which are fitted to few weights
    each, beat one palette a weight at every size with eight, but not with two.
    """
    return 8 if elements <= _SMALL else 2 if elements <= _LARGE else 1


def _window_samples(bundle: Bundle) -> int:
    from whisperkit_tools.mil.graph import read_graph

    shape = read_graph(bundle.package("MelSpectrogram")).inputs["audio"].shape
    if len(shape) != 1 or shape[0] is None:
        raise BundleError(f"{bundle.path}: MelSpectrogram takes audio of no fixed length; convert the model again")
    return shape[0]


def needed_memory(model: Model) -> int:
    """Bytes that the sensitivity pass takes at its highest: weights, gradients and their squares of the larger half."""
    return 12 * model.largest_component() + (6 << 30 if model.elements > _LARGE else 3 << 29)


def _require_memory(model: Model) -> None:
    need, there = needed_memory(model), available_memory()
    if there is not None and there < need:
        raise BundleError(
            f"measuring this model's sensitivity takes about {need / 1e9:.1f} GB of memory, and {there / 1e9:.1f} GB "
            "are free; close other programs or use a machine with more"
        )


__all__ = ["Aim", "Palettization", "PalettizeConfig", "Palettizer", "Plan", "describe", "original_of"]
