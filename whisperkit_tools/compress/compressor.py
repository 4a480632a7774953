"""A bundle to a smaller one: sensitivity, recipe, palettes, tuning, verification and the gate, in that order."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from whisperkit_tools import __version__, contract
from whisperkit_tools.bundle import Bundle, new_bundle, variant_name
from whisperkit_tools.compress.audio_selection import Clip, calibration_clips, gate_clips
from whisperkit_tools.compress.candidate_store import Candidates, Measured, digest
from whisperkit_tools.compress.config import Made, Palettization, PalettizeConfig, Plan
from whisperkit_tools.compress.gate_measurement import Examination, Listener, calibration_windows, tuning_windows
from whisperkit_tools.compress.manifest_section import compression_record, describe, original_of
from whisperkit_tools.compress.package_builder import verify_packages, write_packages
from whisperkit_tools.compress.planner import Aim, Model, Planner, Ticks
from whisperkit_tools.contract import MODEL_COMPONENTS
from whisperkit_tools.decoder.teacher_forcing import SpeechWindow
from whisperkit_tools.errors import BundleError, QualityGateError
from whisperkit_tools.files import folder_bytes
from whisperkit_tools.manifest import write_manifest
from whisperkit_tools.memory import available_memory, release_memory
from whisperkit_tools.mil.backend import TensorModel
from whisperkit_tools.progress import Progress, SilentProgress
from whisperkit_tools.quantization.palette import Palettized
from whisperkit_tools.quantization.recipe import Recipe
from whisperkit_tools.quantization.search import Search, Trial, search
from whisperkit_tools.quantization.sensitivity import FisherOptions, reference_logits
from whisperkit_tools.quantization.sensitivity_cache import Profile, ProfileKey
from whisperkit_tools.quantization.tuning import Tuning, TuningOptions

PROFILES = ".profiles"
REJECTED = ".rejected"
_START_BITS = 4.5
_MARGIN = 0.9
_MOST_TUNING_SENTENCES = 64
_LARGE = 1 << 26  # elements
_SMALL = 1 << 24


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
        self._samples = _window_samples(self.bundle)
        self._clips: list[Clip] = calibration_clips(config.calibration, config.windows, self._samples)
        self._fisher = FisherOptions(config.samples or _samples(self.model.elements), config.seed)
        settings = {"samples": self._fisher.samples, "seed": config.seed, "max_tokens": config.max_tokens}
        key = ProfileKey(self.model.weights_sha256(), [clip.sha256 for clip in self._clips], settings)
        root = config.profile_dir or self.bundle.path.resolve().parent / PROFILES / self.bundle.name
        self.planner = Planner(self.model, Profile(root, key), config.wishes, self._ticks)
        if config.aim is not None:
            self.planner.check(config.aim)
        self._candidates = Candidates(self.planner.profile.path)
        self._mel: TensorModel | None = None
        self._gate: dict[str, Any] | None = None
        self._tuning_name: str | None = None  # of the candidate under way

    def listener(self) -> Listener:
        """The uncompressed bundle, listening: loaded anew each time, and let go before the next of what is as large."""
        release_memory()
        listener = Listener(self.bundle, self.config.max_tokens, self._mel)
        self._mel = listener.mel
        return listener

    @cached_property
    def windows(self) -> list[SpeechWindow]:
        """The calibration windows, transcribed by the uncompressed bundle."""
        with self.progress.stage("calibration", "transcribe"):
            return calibration_windows(self.listener(), self._clips)

    @cached_property
    def tuning_speech(self) -> tuple[list[SpeechWindow], list[Tensor], list[int]]:
        """Windows of a sentence each, the uncompressed bundle's logits of them, and the indices of those that judge."""
        steps = self.config.tune_steps
        with self.progress.stage("tuning", "transcribe"):
            most = min(steps, _MOST_TUNING_SENTENCES)
            windows, judging = tuning_windows(self.listener(), self.config.calibration, most, steps)
            release_memory()
            return windows, reference_logits(self.model.packages, windows), judging

    def _gate_clips(self, languages: Sequence[str] | None = None) -> list[Clip]:
        return gate_clips(self.config.gate_audio, self.config.gate_examples, languages, self._samples)

    @cached_property
    def _reference(self) -> Bundle | None:
        return None if self.config.reference is None else Bundle.open(self.config.reference)

    @cached_property
    def _examination(self) -> Examination:
        listener = self.listener()
        clips = self._gate_clips(("en", *listener.transcriber.special.languages))
        reference = listener if self._reference is None else Listener(self._reference, self.config.max_tokens)
        with self.progress.stage("gate", "reference"):
            examination = Examination(reference, clips, listener)
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
        least = self.planner.least_nbytes()
        return least, max(least, self.planner.predicted_nbytes(self.planner.most_faithful()))

    # --- making ------------------------------------------------------------------------------------------------------

    def palettes(self, recipe: Recipe) -> dict[str, dict[str, Palettized]]:
        """The compressed weights of a recipe, by component and name."""
        found: dict[str, dict[str, Palettized]] = {name: {} for name in MODEL_COMPONENTS}
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
        self._tuning_name = tuning.name
        figures = tuning.run(lambda number, _: self._ticks("tuning", number, steps), self.planner.profile)
        found = tuning.result()
        del tuning
        release_memory()
        return {name: found.get(name, {}) for name in MODEL_COMPONENTS}, figures

    def make(self, plan: Plan) -> Made:
        """Write, verify and measure a candidate, or take what an interrupted run has made of the same plan."""
        name = self._name(plan)
        found = self._candidates.find(name)
        if found is None:
            with self._candidates.new(name) as folder:
                found = self._candidates.keep(name, self._measured(plan, folder))
            if self._tuning_name is not None:
                self.planner.profile.drop(self._tuning_name)
        return Made(found, plan, self.config.gate.judge(found.examples))

    def _measured(self, plan: Plan, folder: Path) -> Measured:
        palettes, tuning = self.tuned(self.palettes(plan.recipe))
        write_packages(self.bundle, palettes, folder)
        with self.progress.stage("candidate", "verify"):
            figures = verify_packages(self.bundle, palettes, folder, self.windows[0])
        nbytes = sum(folder_bytes(folder / f"{name}.mlpackage") for name in MODEL_COMPONENTS)
        with self.progress.stage("candidate", "gate"):
            examples = self._examination.measure(folder)
        return Measured(folder, nbytes, figures, tuning, examples)

    def _name(self, plan: Plan) -> str:
        """A candidate's name, from everything but the calibration speech, to which the whole profile belongs."""
        recipe = plan.recipe.to_json()["tensors"]
        return digest(
            {
                "recipe": {c: {n: e["compression"] for n, e in parts.items()} for c, parts in recipe.items()},
                "tuning": [self.config.tune_steps, self.config.seed],
                "gate": self._read_gate(),
                "tool": __version__,
            }
        )

    def _read_gate(self) -> dict[str, Any]:
        """Digests of what the gate compares, and on what."""
        if self._gate is None:
            bundles = [bundle for bundle in (self.bundle, self._reference) if bundle is not None]
            clips = [[clip.sha256, clip.text, clip.language] for clip in self._gate_clips()]
            self._gate = {"files": [bundle.content_sha256() for bundle in bundles], "clips": clips}
        return self._gate

    def run(self) -> Palettization:
        """Make the bundle.

        Raises:
            QualityGateError: Nothing passes the gate.
            BundleError: The bundle exists.
        """
        self._read_gate()  # what is missing there is said before the work begins
        self.sense()
        trials, made = self._search() if self.config.aim is None else self._reach(self.config.aim)
        chosen = made[-1] if self.config.aim is not None else _best(made, trials)
        if not chosen.verdict.passed:
            self._reject(chosen, trials)
        measured, target = chosen.measured, self.target(chosen.measured.nbytes)
        self._publish(chosen, trials, target)
        self._candidates.clear()
        return Palettization(
            target, chosen.plan, chosen.verdict, trials.trials, dict(measured.psnr_db), measured.tuning
        )

    def _attempt(self, plan: Plan, budget_bytes: int, made: list[Made]) -> Trial:
        made.append(self.make(plan))
        self._ticks("candidates", len(made), self.config.search.trials)
        trial = Trial(budget_bytes, made[-1].measured.nbytes, made[-1].verdict)
        self.progress.note(describe(trial))
        return trial

    def _search(self) -> tuple[Search, list[Made]]:
        made: list[Made] = []
        least, most = self.bounds()
        start = self.model.fixed_nbytes + int(_START_BITS * self.model.elements / 8)

        def attempt(nbytes: int) -> Trial:
            return self._attempt(self._as_plan(*self.planner.within(nbytes)), nbytes, made)

        return search(least, most, attempt, self.config.search, start), made

    def _reach(self, aim: Aim) -> tuple[Search, list[Made]]:
        """Make what was asked for; where a divergence was, try again with less until it is measured."""
        made: list[Made] = []
        trials: list[Trial] = []
        for _ in range(self.config.search.trials if aim.max_kl is not None else 1):
            plan = self.plan(aim)
            target = self.target(plan.nbytes)
            if target.exists() and not self.config.force:
                raise BundleError(f"{target} already exists; replace it with --force, or choose another place with -o")
            trials.append(self._attempt(plan, plan.nbytes, made))
            measured, limit = trials[-1].verdict.kl_divergence.value, self.config.gate.max_kl
            if aim.max_kl is None or limit is None or measured <= limit:
                break
            aim = Aim(max_kl=_MARGIN * aim.max_kl * limit / measured)
        return Search(tuple(trials)), made

    # --- putting into place ------------------------------------------------------------------------------------------

    def target(self, nbytes: int) -> Path:
        """The folder of a bundle of a size."""
        root = self.config.output_dir or self.bundle.path.resolve().parent
        source, conversion = self.bundle.manifest.source, self.bundle.manifest.conversion
        if source is None or not source.org or not source.model:
            return root / f"{self.bundle.name}_{int(nbytes / 1e6)}MB"
        turbo = conversion is not None and conversion.turbo
        return root / variant_name(source.org, source.model, turbo=turbo, size_bytes=nbytes)

    def _publish(self, chosen: Made, trials: Search, target: Path, *, rejected: bool = False) -> None:
        with new_bundle(target, force=self.config.force) as partial:
            shutil.copytree(chosen.measured.folder, partial, dirs_exist_ok=True)
            record = compression_record(
                self.bundle, chosen, trials.trials, self.config, target, rejected=rejected,
                calibration=self.planner.profile.path.name,
            )  # fmt: skip
            write_manifest(partial, replace(self.bundle.manifest, variant=target.name, compression=record))

    def _reject(self, chosen: Made, trials: Search) -> None:
        nearest = "; ".join(chosen.verdict.shortfalls)
        where = "nothing was published"
        if self.config.keep_rejected:
            target = self.target(chosen.measured.nbytes)
            target = target.with_name(target.name + REJECTED)
            self._publish(chosen, trials, target, rejected=True)
            where = f"it is kept at {target}"
        self._candidates.clear()
        count = len(trials.trials)
        tried = f"none of {count} candidates passes the gate; the nearest" if count > 1 else "the candidate"
        raise QualityGateError(
            f"{tried} ({chosen.measured.nbytes / 1e6:.3f} MB) is not good enough: {nearest}; {where}"
        )


def _best(made: list[Made], trials: Search) -> Made:
    wanted = trials.best or trials.nearest
    return made[trials.trials.index(wanted)]


def _samples(elements: int) -> int:
    """Random cotangents a window.

    The more, the surer what single weights count. On the demo model grouped palettes, which are fitted to few weights
    each, beat one palette a weight at every size with eight, but not with two.
    """
    return 8 if elements <= _SMALL else 2 if elements <= _LARGE else 1


def _window_samples(bundle: Bundle) -> int:

    shape = bundle.package(contract.MEL).graph().inputs["audio"].shape
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
