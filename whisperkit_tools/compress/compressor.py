"""Compression of a bundle in stages: sense, plan, make, judge, place. The state is a `Workspace`."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from whisperkit_tools import __version__
from whisperkit_tools.bundle import Bundle, new_bundle, variant_name
from whisperkit_tools.compress.candidate_store import JudgedCandidate, MeasuredCandidate, candidate_name
from whisperkit_tools.compress.comparison import compare
from whisperkit_tools.compress.config import PalettizeConfig, PalettizeResult
from whisperkit_tools.compress.correction import corrected_plan
from whisperkit_tools.compress.forecast import SearchForecast
from whisperkit_tools.compress.manifest_section import compression_record, describe
from whisperkit_tools.compress.measured_sizes import FormatComparison
from whisperkit_tools.compress.package_builder import Palettes, verify_packages, write_packages
from whisperkit_tools.compress.planner import CompressionPlan, CompressionTarget
from whisperkit_tools.compress.plot import plot_curves, require_matplotlib
from whisperkit_tools.compress.workspace import Workspace, open_workspace
from whisperkit_tools.contract import MODEL_COMPONENTS
from whisperkit_tools.errors import BundleError, QualityGateError, option
from whisperkit_tools.manifest import write_manifest
from whisperkit_tools.memory import release_memory
from whisperkit_tools.progress import Progress
from whisperkit_tools.quantization.gate import Verdict, mean_divergence, next_pending
from whisperkit_tools.quantization.palette import Palettized
from whisperkit_tools.quantization.recipe import Recipe, write_recipe
from whisperkit_tools.quantization.search import SearchResult, SearchTrial, decision, search
from whisperkit_tools.quantization.tuning import Tuning, TuningOptions

REJECTED = ".rejected"
_ROUNDS = 3  # of planning and measuring
_MARGIN = 0.9  # of a divergence that is planned again because the measured one was too large


def palettize(bundle: Bundle, config: PalettizeConfig, progress: Progress | None = None) -> PalettizeResult:
    """Compress a bundle, verify it by running it, judge it at the gate, and put it into place.

    Args:
        bundle: The bundle to compress. A compressed one is replaced by its uncompressed original.
        config: The settings.
        progress: Told of stages, notes and counts.

    Raises:
        QualityGateError: No candidate passes the gate.
        OptionsError: The settings do not fit the model.
        RecipeError: The recipe file is malformed or belongs to another model.
        BundleError: The bundle cannot be compressed, or the result exists already.
        AudioError: There is no audio for calibration or the gate.
    """
    work = _opened(bundle, config, progress)
    work.overlap()
    gate = work.gate_identity()  # missing or unsuitable audio is reported before the work begins
    sense(work)
    judged = _search(work, gate) if config.target is None else _reach(work, config.target, gate)
    chosen = _best(judged) if config.target is None else judged[-1]
    trials = tuple(candidate.trial for candidate in judged)
    verdict = decision(chosen.trial)
    if not verdict.passed:
        raise _rejection(work, chosen, trials)
    compared = _compared(work, chosen.plan, chosen.measured.folder)
    path = place(work, chosen, trials, target_path(work, chosen.measured.nbytes), compared=compared)
    work.candidates.clear()
    _write_extras(work, chosen.plan, compared)
    measured = chosen.measured
    return PalettizeResult(
        path=path,
        plan=chosen.plan,
        verdict=verdict,
        trials=trials,
        nbytes=measured.nbytes,
        psnr_db=dict(measured.psnr_db),
        tuning=measured.tuning,
        compared=compared,
    )


def plan(bundle: Bundle, config: PalettizeConfig, progress: Progress | None = None) -> CompressionPlan:
    """Return the plan of a compression, and make nothing but the recipe file and the plot that the settings name.

    Without a target, this is the plan with which a search starts. Raises errors as `palettize` does.
    """
    work = _opened(bundle, config, progress)
    sense(work)
    found = plan_for(work, config.target) if config.target is not None else _start_plan(work)
    _write_extras(work, found, _compared(work, found))
    return found


def _opened(bundle: Bundle, config: PalettizeConfig, progress: Progress | None) -> Workspace:
    if config.plot is not None:
        require_matplotlib()
    return open_workspace(bundle, config, progress)


def _compared(work: Workspace, planned: CompressionPlan, folder: Path | None = None) -> FormatComparison | None:
    """Compare with block formats where a plot is to show that."""
    return compare(work, planned, folder) if work.config.plot is not None else None


def _write_extras(work: Workspace, planned: CompressionPlan, compared: FormatComparison | None) -> None:
    """Write the recipe file and the plot that the settings name."""
    if work.config.recipe_out is not None:
        write_recipe(planned.recipe, work.config.recipe_out)
    if work.config.plot is not None:
        plot_curves(work.planner, planned, work.config.plot, compared)


# --- sense -----------------------------------------------------------------------------------------------------------


def sense(work: Workspace) -> None:
    """Make sure that the cache has the curvature of every weight."""
    with work.progress.stage("sensitivity", "profile"):
        work.planner.sense(work.calibration_windows, work.fisher)


# --- plan ------------------------------------------------------------------------------------------------------------


def plan_for(work: Workspace, target: CompressionTarget) -> CompressionPlan:
    """Return the plan for a target, corrected until its divergence is the one measured on held-out speech."""
    has_choice = target.recipe is None and target.nbits is None
    with work.progress.stage("plan", "correct"):
        found = corrected_plan(
            work.planner,
            lambda: work.planner.plan(target),
            work.plan_measurement,
            work.progress,
            keeps_size=target.max_kl is None,
            rounds=_ROUNDS if has_choice else 1,
        )
    work.plans = None  # as large as the model
    release_memory()
    return found


# --- make ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TunedPalettes:
    """Palettes after tuning.

    Attributes:
        palettes: Compressed weights by component and name.
        divergence: Mean divergence before and after tuning. None without tuning.
        checkpoint: Name of the tuning's checkpoint, to be dropped when the candidate is stored. None without tuning.
    """

    palettes: Palettes
    divergence: tuple[float, float] | None = None
    checkpoint: str | None = None


def make(work: Workspace, planned: CompressionPlan, gate: Mapping[str, Any]) -> MeasuredCandidate:
    """Return the candidate of a plan with its divergence: from the store, or written, verified and measured now.

    Its transcripts are pending, apart from those that the divergence's measurement settles or the store holds.

    Args:
        work: The workspace.
        planned: The plan.
        gate: The gate's identity, on which the measurements depend.
    """
    name = _candidate_name(work, planned.recipe, gate)
    found = work.candidates.find(name) or _written(work, planned, name)
    if not found.examples:
        with work.progress.stage("candidate", "divergence"):
            examples = work.gate_measurement().load(found.folder).forced()
        found = work.candidates.update(replace(found, examples=examples))
    return found


def _written(work: Workspace, planned: CompressionPlan, name: str) -> MeasuredCandidate:
    """Write, verify and store the candidate of a plan."""
    if work.measurement is not None:
        work.measurement.release()
    tuned = tune(work, palettes_of(work, planned.recipe))
    with work.candidates.new(name) as folder:
        write_packages(work.bundle, tuned.palettes, folder)
        with work.progress.stage("candidate", "verify"):
            figures = verify_packages(work.bundle, tuned.palettes, folder, work.calibration_windows()[0])
        written = Bundle.open(folder)
        nbytes = sum(written.package(component).nbytes for component in MODEL_COMPONENTS)
        found = work.candidates.keep(name, MeasuredCandidate(folder, nbytes, figures, tuned.divergence, ()))
    if tuned.checkpoint is not None:
        work.planner.cache.drop(tuned.checkpoint)
    return found


def _candidate_name(work: Workspace, recipe: Recipe, gate: Mapping[str, Any]) -> str:
    """Return a name from everything but the calibration speech, to which the whole cache belongs."""
    tensors = recipe.to_json()["tensors"]
    return candidate_name(
        {
            "recipe": {c: {n: e["compression"] for n, e in parts.items()} for c, parts in tensors.items()},
            "tuning": [work.config.tune_steps, work.config.seed],
            "gate": gate,
            "tool": __version__,
        }
    )


def palettes_of(work: Workspace, recipe: Recipe) -> dict[str, dict[str, Palettized]]:
    """Return the compressed weights of a recipe by component and name."""
    found: dict[str, dict[str, Palettized]] = {name: {} for name in MODEL_COMPONENTS}
    for number, (key, entry) in enumerate(recipe.entries.items(), start=1):
        if entry.compression is not None:
            found[key[0]][key[1]] = work.planner.palette(key, entry.compression)
        work.progress.advance("palettes", number, len(recipe.entries))
    return found


def tune(work: Workspace, palettes: Palettes) -> TunedPalettes:
    """Tune palettes for the configured number of steps."""
    steps = work.config.tune_steps
    if not steps or not any(palettes.values()):
        return TunedPalettes(palettes)
    options, speech = TuningOptions(steps, seed=work.config.seed), work.tuning_speech()
    tuning = Tuning(work.weights.packages, palettes, speech.windows, speech.references, options, speech.judging)
    figures = tuning.run(lambda number, _: work.progress.advance("tuning", number, steps), work.planner.cache)
    found, name = tuning.result(), tuning.name
    del tuning
    release_memory()
    return TunedPalettes({component: found.get(component, {}) for component in MODEL_COMPONENTS}, figures, name)


# --- judge -----------------------------------------------------------------------------------------------------------


def judge(work: Workspace, measured: MeasuredCandidate) -> tuple[MeasuredCandidate, Verdict]:
    """Transcribe a candidate's pending examples until the gate's decision is certain.

    Returns:
        The candidate with the further measurements, and the decision.
    """
    gate, examples = work.config.gate, list(measured.examples)
    with work.progress.stage("candidate", "gate"):
        while not gate.is_decided(examples):
            at = next_pending(examples)
            candidate = work.gate_measurement().load(measured.folder)
            examples[at] = candidate.transcribed(at, examples[at], whole=examples[at].is_cut)
            measured = work.candidates.update(replace(measured, examples=tuple(examples)))
            known = sum(example.is_final for example in examples)
            work.progress.advance("gate examples", known, len(examples))
        work.progress.advance("gate examples", len(examples), len(examples))
    return measured, gate.judge(examples)


def _made(work: Workspace, planned: CompressionPlan, budget_bytes: int, gate: Mapping[str, Any]) -> JudgedCandidate:
    measured = make(work, planned, gate)
    trial = SearchTrial(budget_bytes, measured.nbytes, mean_divergence(measured.examples))
    return JudgedCandidate(measured, planned, trial)


def _judged(work: Workspace, made: JudgedCandidate) -> JudgedCandidate:
    measured, verdict = judge(work, made.measured)
    found = replace(made, measured=measured, trial=replace(made.trial, verdict=verdict))
    work.progress.note(describe(found.trial))
    return found


def _search(work: Workspace, gate: Mapping[str, Any]) -> list[JudgedCandidate]:
    """Make candidates of several sizes, and judge those that decide, for the smallest that passes the gate."""
    measurement, options = work.gate_measurement(), work.config.search
    start = _start_plan(work).nbytes
    forecast = SearchForecast(work.progress, options.trials, measurement.count, measurement.seconds_per_example)
    candidates: list[JudgedCandidate] = []

    def make_one(nbytes: int) -> SearchTrial:
        with forecast.making():
            candidates.append(_made(work, plan_for(work, CompressionTarget(target_bytes=nbytes)), nbytes, gate))
        return candidates[-1].trial

    def judge_last() -> Verdict:
        with forecast.judging():
            candidates[-1] = _judged(work, candidates[-1])
        return decision(candidates[-1].trial)

    search(*work.planner.bounds(), make_one, judge_last, options, start)
    forecast.close()
    return candidates


def _start_plan(work: Workspace) -> CompressionPlan:
    """Return the plan at whose size a search starts, where the gate usually opens."""
    return plan_for(work, CompressionTarget(max_kl=work.config.search.start_kl))


def _best(judged: list[JudgedCandidate]) -> JudgedCandidate:
    """Return the smallest candidate that passed, or else the one nearest to passing."""
    trials = SearchResult(tuple(candidate.trial for candidate in judged))
    return judged[trials.trials.index(trials.best or trials.nearest)]


def _reach(work: Workspace, target: CompressionTarget, gate: Mapping[str, Any]) -> list[JudgedCandidate]:
    """Judge the candidate of a target. A divergence is planned again with less until the measured one is reached."""
    judged: list[JudgedCandidate] = []
    for _ in range(work.config.search.trials if target.max_kl is not None else 1):
        found = plan_for(work, target)
        path = target_path(work, found.nbytes)
        if path.exists() and not work.config.force:
            raise BundleError(
                f"{path} already exists; replace it ({option('force', True)}) or choose another folder "
                f"({option('output_dir')})"
            )
        judged.append(_judged(work, _made(work, found, found.nbytes, gate)))
        measured, limit = judged[-1].trial.kl_divergence, work.config.gate.max_kl
        if target.max_kl is None or limit is None or measured <= limit:
            break
        target = CompressionTarget(max_kl=_MARGIN * target.max_kl * limit / measured)
    return judged


# --- place -----------------------------------------------------------------------------------------------------------


def target_path(work: Workspace, nbytes: int) -> Path:
    """Return the folder of a bundle of a size."""
    root = work.config.output_dir or work.bundle.path.resolve().parent
    source, conversion = work.bundle.manifest.source, work.bundle.manifest.conversion
    if source is None or not source.org or not source.model:
        return root / f"{work.bundle.name}_{int(nbytes / 1e6)}MB"
    turbo = conversion is not None and conversion.turbo
    return root / variant_name(source.org, source.model, turbo=turbo, size_bytes=nbytes)


def place(
    work: Workspace,
    chosen: JudgedCandidate,
    trials: tuple[SearchTrial, ...],
    target: Path,
    *,
    rejected: bool = False,
    compared: FormatComparison | None = None,
) -> Path:
    """Put a candidate into place as a bundle with a manifest, and return its folder.

    Raises:
        BundleError: The folder exists already.
    """
    with new_bundle(target, force=work.config.force) as partial:
        shutil.copytree(chosen.measured.folder, partial, dirs_exist_ok=True)
        record = compression_record(
            work.bundle,
            chosen,
            trials,
            work.config,
            target,
            rejected=rejected,
            calibration=work.planner.cache.path.name,
            overlap=work.overlap(),
            compared=compared,
        )
        write_manifest(partial, replace(work.bundle.manifest, variant=target.name, compression=record))
    return target


def _rejection(work: Workspace, chosen: JudgedCandidate, trials: tuple[SearchTrial, ...]) -> QualityGateError:
    """Keep the nearest candidate where that is configured, and return the error of a run in which none passes."""
    outcome = "nothing was published"
    if work.config.keep_rejected:
        target = target_path(work, chosen.measured.nbytes)
        target = place(work, chosen, trials, target.with_name(target.name + REJECTED), rejected=True)
        outcome = f"it is kept at {target}"
    work.candidates.clear()
    count = len(trials)
    tried = f"none of {count} candidates passes the gate; the nearest" if count > 1 else "the candidate"
    shortfalls = "; ".join(decision(chosen.trial).shortfalls)
    return QualityGateError(
        f"{tried} ({chosen.measured.nbytes / 1e6:.3f} MB) is not good enough: {shortfalls}; {outcome}"
    )
