"""Small bundles and reports for the tests of publishing, real in everything that publishing reads."""

import json

from whisperkit_tools.bundle import Bundle
from whisperkit_tools.eval.backends.base import BackendInfo, BundleInfo
from whisperkit_tools.eval.schema import DatasetInfo, Metrics, Report, RunReport, Speed
from whisperkit_tools.eval.typed_json import to_json
from whisperkit_tools.manifest import Manifest, write_manifest

REPO = "acme/whisper-coreml-acme"
NOW = "2026-01-02T03:04:05+00:00"
VERIFIED = {name: {"float32": {"out": 110.0}, "float16": {"out": 60.0}}
            for name in ("MelSpectrogram", "AudioEncoder", "TextDecoder")}  # fmt: skip


def make_bundle(folder, name="acme_whisper-w", *, seed=0, manifest=None):
    """Write a small bundle whose weights are noise."""
    path = folder / name
    for component in ("MelSpectrogram", "AudioEncoder", "TextDecoder"):
        data = path / f"{component}.mlpackage" / "Data" / "com.apple.CoreML"
        data.mkdir(parents=True)
        (data / "model.mlmodel").write_bytes(f"{component} {seed}".encode())
        (data / "weight.bin").write_bytes(b"\0" + bytes([seed]) * 9000)
        (path / f"{component}.mlpackage" / "Manifest.json").write_text("{}")
    for asset in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (path / asset).write_text("{}")
    (path / "generation_config.json").write_text('{"lang_to_id": {"<|en|>": 1, "<|es|>": 2}}')
    content = {
        "tool": {"version": "0.1.0"},
        "libraries": {"torch": "2.13"},
        "source": {"name": "tiny", "org": "acme", "model": "whisper-w", "revision": "f" * 40, "license": "mit"},
        "conversion": {"verified": True, "deployment_target": "ios16"},
        "parity": {"psnr_db": VERIFIED},
    }
    write_manifest(path, Manifest.from_json({**content, **(manifest or {})}, "m"))
    return Bundle.open(path)


def compressed(passed=True, **more):
    gate = {"shortfalls": [] if passed else ["QoI 80 %, at least 95 % are asked for"],
            "qoi": {"value": 97.5, "low": 92.0, "high": 100.0}}  # fmt: skip
    return {
        "compression": {"rejected": False, "gate": gate, "original": {"name": "acme_whisper-w"}, "nbytes": 9, **more}
    }


def write_report(folder, bundle, wer, *, dataset="librispeech"):
    """Write a report as `wkt evaluate` does."""
    content = bundle.manifest.content_sha256()
    run = RunReport(
        "k", bundle.name, BundleInfo(bundle.name, "x", 1, {}, content), BackendInfo("executor", bundle.name, content),
        DatasetInfo(dataset, "f", "x", 10, 100.0), {}, {}, {}, "2026-01-01T00:00:00", "2026-01-01T01:00:00",
        Metrics(wer, 0.01, 1, 0, 0, 100, wer_interval=(0.02, 0.03)), Speed(None, None, None, None, 12.0, 11.0, 0, 1.0),
    )  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(to_json(Report((run,)))))
    (folder / "report.md").write_text("# Report\n")
    (folder / "report.html").write_text("<p>secret text of the dataset</p>")
