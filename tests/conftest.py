"""Fixtures that several test files need."""

import json
import logging
import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples each time, so that a failure is a change's doing; `make fuzz` looks for others.
settings.register_profile("repeatable", derandomize=True)
settings.register_profile("fuzz", derandomize=False, print_blob=True)
settings.load_profile("repeatable")

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch is imported: a worker for each core and threads for each core stand in each other's way.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.append(str(Path(__file__).parent))  # what several test files share lies beside them
SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session", autouse=True)
def _quiet_libraries():
    os.environ["TQDM_DISABLE"] = "1"
    from whisperkit_tools.mil.quiet import import_coremltools

    import_coremltools()


@pytest.fixture(autouse=True)
def _restore_log_levels():
    """`wkt` run inside a test silences the libraries for its process, which is the other tests' too."""
    loggers = [
        logging.getLogger(name) for name in ("transformers", "huggingface_hub", "coremltools", "torch", "datasets")
    ]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real audio and checkpoints beside the project; tests that use it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not there: this test needs the real audio and checkpoints beside the project")
    return SHARED


@pytest.fixture
def wkt(capsys):
    """Run `wkt` in this process; gives exit code, stdout and stderr."""

    from whisperkit_tools import cli

    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return stop.value.code, captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def prefill_bundle(tmp_path_factory, worker_id) -> Path:
    """The converted embedded demo with a prefill, made from half of ten utterances and judged on the other half."""
    from filelock import FileLock

    from whisperkit_tools.checkpoint import open_checkpoint
    from whisperkit_tools.conversion.convert import ConversionConfig, convert
    from whisperkit_tools.conversion.prefill.audio import Recording, demo_clips
    from whisperkit_tools.conversion.prefill.build import PrefillConfig
    from whisperkit_tools.conversion.prefill.comparison import transcripts_with
    from whisperkit_tools.conversion.speech import verification_speech

    base = tmp_path_factory.getbasetemp()
    root = (base if worker_id == "master" else base.parent) / "prefill-bundles"
    recordings = tuple(Recording(clip.name, clip.samples, clip.text) for clip in demo_clips()[:10])
    with FileLock(f"{root}.lock"):
        if not root.is_dir():
            prefill = PrefillConfig(recordings=recordings, transcripts=transcripts_with, max_wer_delta=100)
            config = ConversionConfig(output_dir=root, prefill=prefill)
            convert(open_checkpoint("demo"), config, verification_speech())
    return next(path for path in root.iterdir() if not path.name.startswith("."))


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory, worker_id) -> Path:
    """The converted embedded demo, made once for all workers of a run."""
    from filelock import FileLock

    from whisperkit_tools.checkpoint import open_checkpoint
    from whisperkit_tools.conversion.convert import ConversionConfig, convert
    from whisperkit_tools.conversion.speech import verification_speech

    base = tmp_path_factory.getbasetemp()
    root = (base if worker_id == "master" else base.parent) / "demo-bundles"
    with FileLock(f"{root}.lock"):
        if not root.is_dir():
            convert(open_checkpoint("demo"), ConversionConfig(output_dir=root), verification_speech())
    return next(path for path in root.iterdir() if not path.name.startswith("."))


@pytest.fixture
def write_run(tmp_path):
    """Write the folder of a finished evaluation of `(reference, hypothesis)` pairs, with fields of rows by index."""
    import jiwer

    from whisperkit_tools.eval import schema
    from whisperkit_tools.eval.backends import base as transcriber
    from whisperkit_tools.eval.metrics.alignment import align

    def row(index, reference, hypothesis, changes):
        pieces = align(reference.split(), hypothesis.split())
        n = dict.fromkeys(("equal", "substitute", "delete", "insert"), 0)
        for piece in pieces:
            n[piece.type] += max(len(piece.reference), len(piece.hypothesis))
        wrong, words = n["substitute"] + n["delete"] + n["insert"], len(reference.split())
        fields = {
            "id": f"utt-{index:04d}", "index": index, "audio": None, "duration_s": 2.0 + index, "language": "en",
            "speaker": f"s{index % 3}", "reference": reference, "hypothesis": hypothesis, "hits": n["equal"],
            "reference_normalized": reference, "hypothesis_normalized": hypothesis, "alignment": pieces,
            "wer": wrong / words if words else None, "substitutions": n["substitute"], "deletions": n["delete"],
            "insertions": n["insert"], "reference_words": words,
        }  # fmt: skip
        return schema.ResultRow(**{**fields, **changes})

    def write(name, pairs, *, key="a1b2c3d4", size_bytes=145_000_000, rows=None, **changes):
        made = [row(i, *pair, (rows or {}).get(i, {})) for i, pair in enumerate(pairs)]
        good = [one for one in made if one.error is None]
        total = jiwer.process_words([p.reference_normalized for p in good], [p.hypothesis_normalized for p in good])
        words = sum(one.reference_words for one in good)
        wer = (total.substitutions + total.deletions + total.insertions) / max(1, words)
        report = {
            "key": key * 8, "name": name,
            "bundle": transcriber.BundleInfo(name, "bundles/x", size_bytes, {"AudioEncoder": size_bytes}, key * 8),
            "backend": transcriber.BackendInfo("executor", name),
            "dataset": schema.DatasetInfo("toy", "f0" * 16, "toy", len(made), sum(p.duration_s for p in made), "en"),
            "options": {"normalizer": "english"}, "machine": {"cpu": "test"}, "versions": {"wkt": "0"},
            "started": "2026-01-01T00:00:00+00:00", "finished": "2026-01-01T00:01:00+00:00",
            "metrics": schema.Metrics(wer, wer / 2, total.substitutions, total.deletions, total.insertions, words),
            "speed": schema.Speed(0.03, 0.005, 200.0, 0.2, 50.0, 49.0, 0, 60.0),
            "by_duration": (schema.Bucket("0-5 s", len(made), 9.0, words, wer),),
            "by_speaker": tuple(schema.Bucket(f"s{i}", 1, 9.0, words, wer) for i in range(3)),
            "failures": tuple(schema.Failure(p.id, p.error) for p in made if p.error),
        }  # fmt: skip
        folder = tmp_path / "runs" / f"{name.replace('/', '_')}-{key}"
        folder.mkdir(parents=True)
        run = schema.RunReport(**{**report, **changes})
        text = json.dumps(schema.to_json(schema.Report((run,))))
        (folder / "report.json").write_text(text, encoding="utf-8")
        (folder / "run.json").write_text(json.dumps({"key": run.key}), encoding="utf-8")
        lines = [json.dumps(schema.to_json(one)) + "\n" for one in made]
        (folder / "results.jsonl").write_text("".join(lines), encoding="utf-8")
        return folder

    return write


@pytest.fixture(scope="session")
def stateful_bundle(tmp_path_factory, worker_id) -> Path:
    """The same with its decoder's caches as states."""
    from filelock import FileLock

    from whisperkit_tools.checkpoint import open_checkpoint
    from whisperkit_tools.conversion.convert import ConversionConfig, convert
    from whisperkit_tools.conversion.speech import verification_speech

    base = tmp_path_factory.getbasetemp()
    root = (base if worker_id == "master" else base.parent) / "stateful-bundles"
    with FileLock(f"{root}.lock"):
        if not root.is_dir():
            config = ConversionConfig(output_dir=root, deployment_target="ios18", stateful=True)
            convert(open_checkpoint("demo"), config, verification_speech())
    return next(path for path in root.iterdir() if not path.name.startswith("."))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A server that speaks the Hub's protocol, and a client that keeps its cache beside it."""
    from helpers.hub_server import TestHub
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with TestHub(tmp_path / "hub") as running:
        yield running


@pytest.fixture
def interruptible():
    """Lets processes that a test starts be interrupted: a shell's background jobs ignore it, and hand that on."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
