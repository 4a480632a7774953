"""KL divergence against size: uniform palettes, threshold recipes, this project's allocation, tuned or not.

    python -m tests.benchmarks palettize-curve BUNDLE [--bits 3,4,5] [--steps 240] [--examples 16] [--tokens 128]

Every recipe is made for the same size of weights. The divergence is measured, on utterances that calibration has not
heard, with the weights put into the bundle's own programs.

uniform: the same width for all, one palette a weight, unweighted, as coremltools does in one call.
threshold: unweighted palettes; each weight takes the fewest bits at which it alone causes at most a given divergence,
else it stays float16; the threshold is the one that fits the size. That is whisperkittools' published method, with
every weight (the embedding too) among the candidates, and with the divergence in place of its output PSNR.
per tensor: one palette a weight, weighted palettes and allocation of this project.
all options: the same with grouped palettes, vectors and outliers, as far as the bundle's target has them.
tuned: the last of these after palette tuning, at the sizes of --tuned-bits.
At one bit errors are too large for a quadratic prediction, so recipes of any kind begin at two bits.
--per-tensor-only leaves all options out, which take longest to try.
"""

import tempfile
from argparse import ArgumentParser, Namespace
from pathlib import Path

import numpy as np
import torch

from tests.benchmarks.harness import (
    Column,
    Figure,
    Result,
    Stopwatch,
    Table,
    benchmark,
    bundle_argument,
    numbers,
    progress,
)
from whisperkit_tools.bundle import Bundle
from whisperkit_tools.compress.audio_selection import samples_of, select_gate
from whisperkit_tools.compress.compressor import sense
from whisperkit_tools.compress.config import PalettizeConfig
from whisperkit_tools.compress.planner import CompressionTarget
from whisperkit_tools.compress.workspace import open_workspace
from whisperkit_tools.contract import EMBEDS, FEATURES, MODEL_COMPONENTS
from whisperkit_tools.decoder.teacher_forcing import TeacherForcing, mean_divergence
from whisperkit_tools.mil.program import Program
from whisperkit_tools.quantization.allocation import StorageOption
from whisperkit_tools.quantization.compression import NBITS, Compression, dense_nbytes
from whisperkit_tools.quantization.palette import palettize
from whisperkit_tools.quantization.recipe import AllowedCompressions
from whisperkit_tools.quantization.tuning import Tuning, TuningOptions

METHODS = {
    "uniform": "uniform, one palette a weight (coremltools in one call)",
    "threshold": "threshold recipe (whisperkittools' published method, on the same predictions)",
    "per tensor": "`wkt`, one palette a weight",
    "all options": "`wkt`, with groups, vectors and outliers",
    "tuned": "the last, tuned by {steps} steps",
}
PROFILE = Path(tempfile.gettempdir()) / "palettize-curve-profile"


class Meter:
    """Measures the divergence of weights on held-out utterances."""

    def __init__(self, work, examples):
        reference = work.reference()
        samples = reference.models.sizes.n_samples
        short = [one for one in select_gate(None, None, ("en", "es"), samples) if len(samples_of(one)) <= samples]
        chosen = sorted({round(at) for at in np.linspace(0, len(short) - 1, min(examples, len(short)))})
        heard = [reference.transcribe(short[at], whole=False) for at in chosen]
        self.windows = [item.window for item in heard if item is not None]
        self.programs = [Program.load(work.weights.packages[name]) for name in MODEL_COMPONENTS]
        self.originals = {
            (component, name): program.weights[name].detach().clone()
            for component, program in zip(MODEL_COMPONENTS, self.programs, strict=True)
            for where, name in work.weights.shapes
            if where == component
        }
        self.references = self._logits()

    def _logits(self):
        encoder, decoder = self.programs
        forcing = TeacherForcing(decoder)
        return [forcing.forward(w, encoder.run({FEATURES: w.features})[EMBEDS]).logits for w in self.windows]

    def __call__(self, palettes):
        by_name = dict(zip(MODEL_COMPONENTS, self.programs, strict=True))
        with torch.no_grad():
            for (component, name), original in self.originals.items():
                part = palettes.get((component, name))
                value = original if part is None else torch.from_numpy(part.dense().astype(np.float32))
                by_name[component].weights[name].copy_(value)
        return mean_divergence(self.references, self._logits())


def plain(work, cache, key, nbits):
    """An unweighted palette, and the divergence that it alone is predicted to cause."""
    if (key, nbits) not in cache:
        weight = work.weights.weight(key)
        made = palettize(weight, Compression(nbits), name=key[1])
        cache[key, nbits] = made, work.planner.divergence(key, made)
    return cache[key, nbits]


def threshold_recipe(work, cache, widths, budget):
    """The recipe of the least threshold that fits the budget."""
    limits = sorted({plain(work, cache, key, n)[1] for key in work.weights.shapes for n in widths})
    for limit in limits:
        chosen = {}
        for key in work.weights.shapes:
            fitting = [n for n in widths if plain(work, cache, key, n)[1] <= limit]
            if fitting:
                chosen[key] = plain(work, cache, key, min(fitting))[0]
        size = sum(chosen[k].nbytes if k in chosen else dense_nbytes(s) for k, s in work.weights.shapes.items())
        if size <= budget:
            return chosen, size
    return None, 0


def recipe_palettes(work, recipe):
    return {k: work.planner.palette(k, e.compression) for k, e in recipe.entries.items() if e.compression is not None}


def tuned(work, palettes, steps):
    nested = {name: {n: p for (c, n), p in palettes.items() if c == name} for name in MODEL_COMPONENTS}
    speech = work.tuning_speech()
    tuning = Tuning(
        work.weights.packages, nested, speech.windows, speech.references, TuningOptions(steps), speech.judging
    )
    tuning.run()
    return {(c, n): p for c, parts in tuning.result().items() for n, p in parts.items()}


class Curve:
    """Recipes of several methods at one size after another, and their measured divergence."""

    def __init__(self, work, examples, per_tensor_only):
        self.work, self.meter, self.cache = work, Meter(work, examples), {}
        self.widths = [n for n in NBITS[1:] if Compression(n).spec_version <= work.weights.spec_version]
        self.candidates = {"per tensor": self._per_tensor()}
        if not per_tensor_only:
            self.candidates["all options"] = work.planner.table()
        self.table = Table((
            Column("bits", "bits"), Column("method", "method"), Column("measured_bits", "bits a weight", ".3f"),
            Column("kl", "KL", ".5f"), Column("predicted_kl", "predicted KL", ".5f"),
        ))  # fmt: skip

    def _per_tensor(self):
        """One palette a weight at each width, or none at all."""
        planner, options = self.work.planner, [Compression(n) for n in self.widths]
        return {
            key: [*planner.options(key, options), StorageOption(None, dense_nbytes(shape), 0.0)]
            for key, shape in self.work.weights.shapes.items()
        }

    def _add(self, bits, method, palettes, size, predicted=None):
        measured_bits = 8 * size / self.work.weights.elements
        kl = self.meter(palettes)
        self.table.add(
            bits=bits, method=method, nbytes=size, measured_bits=measured_bits, kl=kl, predicted_kl=predicted
        )

    def measure(self, bits, tuning_steps):
        """Measure every method at the size of uniform palettes of so many bits; tune the last by so many steps."""
        work, elements = self.work, self.work.weights.elements
        whole = None
        if bits in self.widths:
            whole = {key: plain(work, self.cache, key, int(bits))[0] for key in work.weights.shapes}
        budget = sum(p.nbytes for p in whole.values()) if whole else int(bits * elements / 8)
        if whole:
            self._add(bits, "uniform", whole, budget)
        chosen, size = threshold_recipe(work, self.cache, self.widths, budget)
        if chosen is not None:
            self._add(bits, "threshold", chosen, size)
        target = CompressionTarget(target_bits=8 * (budget + 0.5) / elements)
        for method, candidates in self.candidates.items():
            work.planner.table = lambda candidates=candidates: candidates
            recipe, _ = work.planner.recipe(target)
            palettes = recipe_palettes(work, recipe)
            self._add(bits, method, palettes, recipe.nbytes, recipe.divergence)
        if tuning_steps:
            self._add(bits, "tuned", tuned(work, palettes, tuning_steps), recipe.nbytes)


def options(parser: ArgumentParser) -> None:
    bundle_argument(parser)
    parser.add_argument("--bits", default="3,4,5")
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--tuned-bits", default="3,3.5,4,5")
    parser.add_argument("--examples", type=int, default=16)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128, help="maximum of a window; a random model writes on and on")
    parser.add_argument("--profile", type=Path, default=PROFILE)
    parser.add_argument("--per-tensor-only", action="store_true")


@benchmark("palettize-curve", options)
def palettize_curve(args: Namespace) -> Result:
    config = PalettizeConfig(
        target=CompressionTarget(target_bits=4),
        allowed=AllowedCompressions(forms=("vectors", "outliers")),
        windows=args.windows,
        max_tokens=args.tokens,
        profile_dir=args.profile,
        tune_steps=args.steps,
    )
    work = open_workspace(Bundle.open(args.bundle), config)
    watch = Stopwatch()
    sense(work)
    note = f"sensitivity {watch.wall_s:.1f} s"
    progress(note)
    curve = Curve(work, args.examples, args.per_tensor_only)
    for bits in numbers(args.bits):
        curve.measure(bits, args.steps if bits in numbers(args.tuned_bits) else 0)
    figures = [
        Figure(METHODS[row["method"]].format(steps=args.steps), row["kl"], "", f"{row['bits']:g} bits", ".4f")
        for row in curve.table.rows
    ]
    return Result([curve.table], figures, [note])
