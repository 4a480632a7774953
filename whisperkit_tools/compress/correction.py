"""Correction of a plan's predictions by what its palettes do on speech that the plan has not seen.

The curvature predicts small errors well. Large errors are not quadratic, errors of several weights do not simply add,
and compensated errors weigh less than the curvature says. So a plan's palettes are measured on held-out speech, for the
encoder, the decoder and the token embedding alone and for all together. The ratios correct the predictions of all
compressions in these parts, and the plan is solved again, until prediction and measurement agree.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from whisperkit_tools.compress.plan_measurement import PARTS, PartDivergences, PlanMeasurement, part_of
from whisperkit_tools.compress.planner import CompressionPlan, Planner
from whisperkit_tools.progress import Progress
from whisperkit_tools.quantization.recipe import Recipe

_AGREEMENT = 1.25  # of prediction and measurement
_LEAST, _MOST = 0.02, 50.0  # of a correction, so that a part that causes almost nothing does not mislead
_TINY = 1e-12
_NEGLIGIBLE = 1e-4  # of all of a plan's divergence; below it a part's ratio is noise


@dataclass(frozen=True, slots=True)
class _Attempt:
    plan: CompressionPlan
    measured: PartDivergences
    ratios: dict[str, float]


def corrected_plan(
    planner: Planner,
    solve: Callable[[], CompressionPlan],
    measurement: Callable[[], PlanMeasurement],
    progress: Progress,
    *,
    keeps_size: bool,
    rounds: int,
) -> CompressionPlan:
    """Return a plan whose predicted divergence agrees with what was measured.

    Args:
        planner: Keeps the corrections, which later plans begin with.
        solve: Makes the plan with the planner's present corrections.
        measurement: Measures palettes on held-out speech.
        progress: Told of each round.
        keeps_size: Whether all rounds have the same size, of which the one of least divergence is returned. Otherwise
            the last one is.
        rounds: Maximum number of rounds.
    """
    attempts: list[_Attempt] = []
    if rounds > 1:
        planner.measure_token_embedding(measurement().decoder_alone)
    for number in range(1, rounds + 1):
        plan = solve()
        if attempts and _is_same(plan, attempts[-1].plan):
            break
        last = _attempt(planner, plan, measurement())
        attempts.append(last)
        progress.note(
            f"plan {number}: {plan.nbytes / 1e6:.3f} MB, predicted KL {plan.recipe.divergence:.4g}, measured "
            f"{last.measured.together:.4g} nats a token"
        )
        planner.correct(last.ratios)
        if _agree(plan.recipe.divergence, last.measured.together):
            break
    chosen = min(attempts, key=lambda attempt: attempt.measured.together) if keeps_size else attempts[-1]
    return replace(chosen.plan, recipe=_corrected(planner, chosen), measured=chosen.measured)


def _attempt(planner: Planner, plan: CompressionPlan, measurement: PlanMeasurement) -> _Attempt:
    chosen = plan.recipe.entries.items()
    palettes = {key: planner.palette(key, entry.compression) for key, entry in chosen if entry.compression is not None}
    measured = measurement.measure(palettes)
    return _Attempt(plan, measured, _ratios(predicted_parts(planner, plan.recipe), measured))


def _corrected(planner: Planner, attempt: _Attempt) -> Recipe:
    """Return an attempt's recipe with the divergences as corrected by its own measurement."""
    recipe = attempt.plan.recipe
    entries = {
        key: replace(entry, divergence=entry.divergence * attempt.ratios.get(part_of(planner.weights, key), 1.0))
        for key, entry in recipe.entries.items()
    }
    return replace(recipe, entries=entries)


def _is_same(plan: CompressionPlan, other: CompressionPlan) -> bool:
    return [e.compression for e in plan.recipe.entries.values()] == [
        e.compression for e in other.recipe.entries.values()
    ]


def _agree(predicted: float, measured: float) -> bool:
    return measured <= _AGREEMENT * predicted and predicted <= _AGREEMENT * measured


def _ratios(predicted: Mapping[str, float], measured: PartDivergences) -> dict[str, float]:
    """Return by part the factor by which its predictions are corrected."""
    joint = measured.together / max(sum(measured.parts.values()), _TINY)
    return {
        part: min(_MOST, max(_LEAST, joint * measured.parts[part] / predicted[part]))
        for part in PARTS
        if predicted[part] > _NEGLIGIBLE * sum(predicted.values()) and measured.parts[part] > 0
    }


def predicted_parts(planner: Planner, recipe: Recipe) -> dict[str, float]:
    """Return the predicted divergence of each part."""
    found = dict.fromkeys(PARTS, 0.0)
    for key, entry in recipe.entries.items():
        found[part_of(planner.weights, key)] += entry.divergence
    return found
