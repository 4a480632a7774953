"""Folders of finished evaluations."""

import json
from pathlib import Path

import jiwer

from whisperkit_tools.eval import schema
from whisperkit_tools.eval.backends import base as transcriber
from whisperkit_tools.eval.metrics.alignment import align
from whisperkit_tools.eval.typed_json import to_json


def _row(index, reference, hypothesis, changes):
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


def write_run(runs: Path, name, pairs, *, key="a1b2c3d4", size_bytes=145_000_000, rows=None, **changes):
    """Write the folder of a finished evaluation of `(reference, hypothesis)` pairs.

    Args:
        runs: The folder to write it into.
        name: The run's name.
        pairs: References and hypotheses.
        key: Half of the run's key, in the folder's name.
        size_bytes: The bundle's size.
        rows: Fields of rows to set, by the row's index.
        changes: Fields of the report to set.
    """
    made = [_row(i, *pair, (rows or {}).get(i, {})) for i, pair in enumerate(pairs)]
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
    folder = runs / f"{name.replace('/', '_')}-{key}"
    folder.mkdir(parents=True)
    run = schema.RunReport(**{**report, **changes})
    text = json.dumps(to_json(schema.Report((run,))))
    (folder / "report.json").write_text(text, encoding="utf-8")
    (folder / "run.json").write_text(json.dumps({"key": run.key}), encoding="utf-8")
    lines = [json.dumps(to_json(one)) + "\n" for one in made]
    (folder / "results.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder
