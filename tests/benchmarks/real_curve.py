"""KL, WER and bytes of compressed bundles beside ggml's block formats, for a real checkpoint and real speech.

    python -m tests.benchmarks real-curve --checkpoint FOLDER --calibration SPEECH --held-out SPEECH --tune 400

At the bytes of each block format (encoder and decoder, as whisper.cpp stores them) this plans a bundle of each
deployment target, makes its palettes, tunes them where --tune says so, and measures all of them on the held-out speech.
Speech is anything that `wkt evaluate --dataset` accepts. Without options the demo's checkpoint and speech are used.

KL: nats a token, the sum over all tokens divided by their number. Tokens are the uncompressed bundle's own greedy
transcripts without timestamps, at most 100 of an utterance and what follows them.
predicted: the plan's prediction of it, from the calibration speech.
WER: of greedy transcripts against the dataset's texts, normalised, in percent.
seconds: plan, palettes and tuning. Measuring is not among them.

What was measured is kept in --work, under all that it depends on, the code of the compression included, so that a run
continues where another one stopped.
"""

import hashlib
import json
import tempfile
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

import whisperkit_tools as wkt
from tests.benchmarks.harness import ROOT, Column, Figure, Result, Stopwatch, Table, benchmark, progress, threads_option
from whisperkit_tools import contract
from whisperkit_tools.bundle import Bundle
from whisperkit_tools.compress.audio_selection import recording_sha256, samples_of
from whisperkit_tools.compress.compressor import palettes_of, plan_for, sense, tune
from whisperkit_tools.compress.config import PalettizeConfig
from whisperkit_tools.compress.divergence_meter import DivergenceMeter, EditableProgram, block_format_weights
from whisperkit_tools.compress.gate_measurement import ReferenceTranscriber, decoding_options
from whisperkit_tools.compress.planner import CompressionTarget
from whisperkit_tools.compress.workspace import open_workspace, window_samples
from whisperkit_tools.contract import DECODER, ENCODER, MODEL_COMPONENTS
from whisperkit_tools.decoder.adapters import MemoizedModel
from whisperkit_tools.decoder.models import Models
from whisperkit_tools.errors import OptionsError
from whisperkit_tools.eval.datasets.open import open_dataset
from whisperkit_tools.eval.datasets.options import DatasetOptions
from whisperkit_tools.eval.metrics.normalize import Normalization
from whisperkit_tools.eval.metrics.wer import Counts, word_counts
from whisperkit_tools.files import sha256_of_json
from whisperkit_tools.quantization.block_formats import BLOCK_FORMATS, block_format_nbytes
from whisperkit_tools.transcribe.transcriber import Transcriber

WORK = Path(tempfile.gettempdir()) / "real-curve"
TARGETS = ("ios16", "ios18")
NAMES = {"ios16": "default target", "ios17": "iOS 17", "ios18": "iOS 18"}
TEXT_TOKENS = 100
SOURCES = ("quantization", "whisperkit_tools/compress")


def evenly(items, count):
    """At most `count` of them, evenly from the first to the last."""
    return [items[at] for at in sorted({round(at) for at in np.linspace(0, len(items) - 1, min(count, len(items)))})]


def held_out(source, language, samples):
    """Recordings of at most a window, by id."""
    found = sorted(open_dataset(source, DatasetOptions(skip_bad=True)).examples, key=lambda one: one.id)
    named = [replace(one, language=language or one.language) for one in found]
    return [one for one in named if len(samples_of(one)) <= samples]


def code_sha256():
    """One digest of the code that makes candidates."""
    files = sorted(path for folder in SOURCES for path in (ROOT / folder).glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


class Store:
    """Measured values by all that they depend on."""

    def __init__(self, folder):
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)

    def get(self, parts, compute):
        path = self.folder / f"{sha256_of_json(parts)[:24]}.json"
        if not path.is_file():
            path.write_text(json.dumps(compute()) + "\n", encoding="utf-8")
        return json.loads(path.read_text(encoding="utf-8"))


class Transcripts:
    """Word errors of weights on recordings with texts."""

    def __init__(self, work, recordings):
        self.recordings = [one for one in recordings if one.text is not None]
        self.programs = {name: EditableProgram(work.weights.packages[name]) for name in MODEL_COMPONENTS}
        mel = MemoizedModel(work.bundle.package(contract.MEL).program(), capacity=max(1, len(self.recordings)))
        models = Models(mel, self.programs[ENCODER].program, self.programs[DECODER].program)
        self.transcriber = Transcriber.from_models(models, work.bundle)
        self.normalization = Normalization()

    def errors(self, weights):
        """Words and word errors."""
        for program in self.programs.values():
            program.replace(weights)
        total = Counts()
        for one in self.recordings:
            text = self.transcriber.transcribe(samples_of(one), decoding_options(one, self.transcriber)).text
            total += word_counts(*self.normalization.pair(one.text, text, one.language))
        return total.reference, total.errors


class Side:
    """A bundle of one deployment target, and the speech."""

    def __init__(self, bundle, args, speech):
        self.args, self.speech = args, speech
        config = PalettizeConfig(
            calibration=args.calibration, windows=args.windows, tune_steps=args.tune, profile_dir=args.work / "profiles"
        )
        self.work = open_workspace(bundle, config)
        recorded = bundle.manifest.conversion
        target = recorded.deployment_target if recorded else None
        self.target = NAMES.get(target, target or bundle.name)

    @cached_property
    def meter(self):
        reference = ReferenceTranscriber(self.work.bundle, TEXT_TOKENS + 1)
        heard = [reference.transcribe(one, whole=False) for one in evenly(self.speech, self.args.examples)]
        windows = [one.window for one in heard if one is not None and one.window is not None]
        return DivergenceMeter(self.work.weights.packages, windows)

    @cached_property
    def transcripts(self):
        return Transcripts(self.work, evenly(self.speech, self.args.transcribe))

    @cached_property
    def depends_on(self):
        """What all values of this side depend on."""
        counts = {name: getattr(self.args, name) for name in ("examples", "transcribe", "language")}
        return {
            "weights": self.work.weights.weights_sha256(),
            "speech": [[recording_sha256(one), one.text] for one in self.speech],
            **counts,
        }

    def measured(self, weights):
        """KL and word errors of weights; for None, of the uncompressed ones."""
        found = {}
        if weights is not None:
            found["kl"] = self.meter.measure([weights])[0]
            found["tokens"] = self.meter.tokens
        if self.args.transcribe:
            found["words"], found["errors"] = self.transcripts.errors(weights)
        return found

    def sensed_s(self):
        watch = Stopwatch()
        sense(self.work)
        return watch.wall_s

    def plan(self, nbytes):
        """The plan within a size."""
        return plan_for(self.work, CompressionTarget(target_bytes=nbytes))

    def candidate(self, plan, *, tuned):
        """Make a plan's palettes, tune them or not, and measure them."""
        watch = Stopwatch()
        palettes = palettes_of(self.work, plan.recipe)
        if tuned:
            found = tune(self.work, palettes)
            palettes = found.palettes
        seconds = watch.wall_s
        values = self.measured(lambda component: ((name, part.dense()) for name, part in palettes[component].items()))
        if tuned and found.checkpoint is not None:
            self.work.planner.cache.drop(found.checkpoint)
        return {**values, "seconds": seconds}


class Curve:
    """The rows of all sizes."""

    def __init__(self, sides, args):
        self.sides, self.args, self.store = sides, args, Store(args.work / "measured")
        self.code, self.notes = code_sha256(), []
        self.plain = self.store.get(["uncompressed", sides[0].depends_on], lambda: sides[0].measured(None))
        name = sides[0].work.bundle.name
        self.table = Table((
            Column("size_of", "bytes of"), Column("method", "method"), Column("nbytes", "MB", ".2f", 1e-6),
            Column("kl", "KL", ".5f"), Column("ratio", "ratio", ".2f"), Column("predicted_kl", "predicted", ".5f"),
            Column("accuracy", "predicted / KL", ".2f"), Column("wer", "WER %", ".2f"),
            Column("wer_delta", "delta", "+.2f"), Column("seconds", "s", ".0f"),
        ), f"{name}, {sides[0].work.weights.nbytes / 1e6:.2f} MB uncompressed")  # fmt: skip

    def sense(self):
        for side in self.sides:
            seconds = side.sensed_s()
            self.notes.append(f"{side.target}: sensitivity {seconds:.1f} s")
            progress(self.notes[-1])

    def at(self, name):
        """Measure everything at the bytes of one block format."""
        one, first = BLOCK_FORMATS[name], self.sides[0]
        packages = first.work.weights.packages
        graphs = [first.work.bundle.package(component).graph() for component in MODEL_COMPONENTS]
        nbytes = sum(block_format_nbytes(graph, one) for graph in graphs)
        theirs = self.store.get(
            ["block format", name, first.depends_on], lambda: first.measured(block_format_weights(packages, one))
        )
        self._add(name, "ggml", nbytes, theirs, theirs["kl"])
        for side in self.sides:
            try:
                plan = side.plan(nbytes)
            except OptionsError as error:
                self.notes.append(f"{side.target}, {name}: {error}")
                continue
            for tuned in (False, True) if self.args.tune else (False,):
                self._ours(name, side, plan, theirs["kl"], tuned=tuned)

    def _ours(self, name, side, plan, theirs, *, tuned):
        steps = self.args.tune if tuned else 0
        calibration = [recording_sha256(one) for one in side.work.calibration] if tuned else []
        key = [plan.recipe.to_json(), steps, calibration, self.code, side.depends_on]
        found = self.store.get(key, lambda: side.candidate(plan, tuned=tuned))
        method = f"`wkt`, {side.target}" + (f", tuned by {steps} steps" if tuned else "")
        predicted = None if tuned else plan.recipe.divergence
        self._add(name, method, plan.nbytes, found, theirs, predicted)

    def _add(self, size_of, method, nbytes, found, theirs, predicted=None):
        kl = found["kl"]
        wer, plain = (100 * one["errors"] / one["words"] if one.get("words") else None for one in (found, self.plain))
        self.table.add(
            size_of=size_of, method=method, nbytes=nbytes, kl=kl, ratio=kl / theirs, predicted_kl=predicted,
            accuracy=None if predicted is None else predicted / kl, wer=wer,
            wer_delta=None if wer is None else wer - plain, seconds=found.get("seconds"), tokens=found["tokens"],
        )  # fmt: skip

    def figures(self):
        """KL, prediction and WER by method and size."""
        found = []
        for row in self.table.rows:
            case = f"{row['size_of']}, {row['nbytes'] / 1e6:.2f} MB" if row["method"] == "ggml" else self._case(row)
            found.append(Figure(f"{row['method']}: KL", row["kl"], "", case, ".5f"))
            if row["predicted_kl"] is not None:
                found.append(Figure(f"{row['method']}: predicted KL", row["predicted_kl"], "", case, ".5f"))
            if row["wer_delta"] is not None:
                found.append(Figure(f"{row['method']}: WER, change", row["wer_delta"], "points", case, "+.2f"))
        return found

    def _case(self, row):
        size = next(one for one in self.table.rows if one["size_of"] == row["size_of"])["nbytes"]
        return f"{row['size_of']}, {size / 1e6:.2f} MB"


def bundles_of(args):
    """The bundles named, or those of the checkpoint, converted for each target unless an earlier run has done so."""
    if args.bundles:
        return [Bundle.open(path) for path in args.bundles]
    source = Path(args.checkpoint)
    identity = str(source.resolve()) if source.exists() else args.checkpoint
    root = args.work / f"{source.name}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"
    found = []
    for target in TARGETS:
        made = [path for path in (root / target).glob("*") if not path.name.startswith(".")]
        if not made:
            progress(f"converting {args.checkpoint} for {target}")
            made = [wkt.convert(args.checkpoint, output_dir=root / target, deployment_target=target, verify=False).path]
        found.append(Bundle.open(made[0]))
    return found


def options(parser: ArgumentParser) -> None:
    parser.add_argument("bundles", nargs="*", type=Path, help="uncompressed bundles of one checkpoint, one a target")
    parser.add_argument(
        "--checkpoint", default="demo", help="what `wkt convert` takes, for the bundles [default: demo]"
    )
    parser.add_argument("--calibration", help="speech for calibration and tuning [default: the demo's]")
    parser.add_argument("--held-out", default="demo", help="speech for KL and WER [default: the demo's]")
    parser.add_argument("--speech", nargs="+", metavar="SPEECH", help="both at once: calibration, then held-out")
    parser.add_argument("--language", default="en", help="language of the held-out speech [default: en]")
    parser.add_argument("--formats", default="q5_1,q5_0,q4_1,q4_0")
    parser.add_argument("--tune", type=int, default=0, metavar="STEPS", help="also measure tuned candidates")
    parser.add_argument("--windows", type=int, default=8, help="calibration windows [default: 8]")
    parser.add_argument("--examples", type=int, default=12, help="utterances for KL [default: 12]")
    parser.add_argument("--transcribe", type=int, default=40, help="utterances for WER, 0 for none [default: 40]")
    parser.add_argument("--work", type=Path, default=WORK, help=f"folder for all that is kept [default: {WORK}]")
    threads_option(parser)


@benchmark("real-curve", options)
def real_curve(args: Namespace) -> Result:
    if args.speech:
        if len(args.speech) != 2:
            raise SystemExit(f"--speech takes two, calibration and held-out; found {len(args.speech)}")
        args.calibration, args.held_out = args.speech
    bundles = bundles_of(args)
    speech = held_out(args.held_out, args.language, window_samples(bundles[0]))
    curve = Curve([Side(bundle, args, speech) for bundle in bundles], args)
    curve.sense()
    for name in args.formats.split(","):
        curve.at(name)
    tokens = {row["tokens"] for row in curve.table.rows}
    curve.notes.append(
        f"KL over {', '.join(map(str, sorted(tokens)))} tokens, WER over {curve.plain.get('words', 0)} words"
    )
    return Result([curve.table], curve.figures(), curve.notes)
