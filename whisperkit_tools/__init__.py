"""Whisper checkpoints to Core ML bundles, verified, compressed and measured on any machine.

The verbs and the main classes are attributes of the package. They are imported when they are first used, so
`import whisperkit_tools` costs nothing:

    import whisperkit_tools as wkt

    bundle = wkt.convert("openai/whisper-tiny", turbo=True)
    small = wkt.palettize(bundle, calibration="speech/", gate_audio="labelled/")
    runs = wkt.evaluate([bundle, small], dataset="librispeech-200")
    wkt.publish(small, to="registry/", reports="evaluations")
    print(wkt.Transcriber.load(small).transcribe("meeting.m4a").text)
    step = wkt.Package.open("TextDecoder.mlpackage").program(precision="float16")

Keywords are the options of the command of the same name, with the same defaults and meanings.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from whisperkit_tools.bundle import Bundle
    from whisperkit_tools.checkpoint import Checkpoint, open_checkpoint
    from whisperkit_tools.compress.config import PalettizeConfig
    from whisperkit_tools.conversion.config import ConvertConfig
    from whisperkit_tools.errors import (
        AudioError,
        BundleError,
        CheckpointError,
        ConversionError,
        DatasetError,
        EvaluationError,
        OptionsError,
        PublishError,
        QualityGateError,
        RecipeError,
        UnsupportedOperationError,
        WktError,
    )
    from whisperkit_tools.eval.runs.tasks import EvaluateConfig
    from whisperkit_tools.mil.package import Package
    from whisperkit_tools.mil.program import Program
    from whisperkit_tools.pipeline.checks import estimate, lint, verify
    from whisperkit_tools.pipeline.convert import convert
    from whisperkit_tools.pipeline.evaluate import evaluate
    from whisperkit_tools.pipeline.filter_labels import filter_labels
    from whisperkit_tools.pipeline.init_student import init_student
    from whisperkit_tools.pipeline.palettize import palettize
    from whisperkit_tools.pipeline.pseudo_label import pseudo_label
    from whisperkit_tools.pipeline.publish import publish, pull
    from whisperkit_tools.pipeline.report import report
    from whisperkit_tools.progress import Progress, SilentProgress
    from whisperkit_tools.publishing.options import PublishOptions
    from whisperkit_tools.transcribe.options import TranscribeOptions
    from whisperkit_tools.transcribe.transcriber import Transcriber

__version__ = "0.1.0"

# The module that each public name comes from.
_MODULES = {
    "bundle": ("Bundle",),
    "checkpoint": ("Checkpoint", "open_checkpoint"),
    "compress.config": ("PalettizeConfig",),
    "conversion.config": ("ConvertConfig",),
    "errors": (
        "AudioError",
        "BundleError",
        "CheckpointError",
        "ConversionError",
        "DatasetError",
        "EvaluationError",
        "OptionsError",
        "PublishError",
        "QualityGateError",
        "RecipeError",
        "UnsupportedOperationError",
        "WktError",
    ),
    "eval.runs.tasks": ("EvaluateConfig",),
    "mil.package": ("Package",),
    "mil.program": ("Program",),
    "pipeline.checks": ("estimate", "lint", "verify"),
    "pipeline.convert": ("convert",),
    "pipeline.evaluate": ("evaluate",),
    "pipeline.filter_labels": ("filter_labels",),
    "pipeline.init_student": ("init_student",),
    "pipeline.palettize": ("palettize",),
    "pipeline.pseudo_label": ("pseudo_label",),
    "pipeline.publish": ("publish", "pull"),
    "pipeline.report": ("report",),
    "progress": ("Progress", "SilentProgress"),
    "publishing.options": ("PublishOptions",),
    "transcribe.options": ("TranscribeOptions",),
    "transcribe.transcriber": ("Transcriber",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "AudioError",
    "Bundle",
    "BundleError",
    "Checkpoint",
    "CheckpointError",
    "ConversionError",
    "ConvertConfig",
    "DatasetError",
    "EvaluateConfig",
    "EvaluationError",
    "OptionsError",
    "Package",
    "PalettizeConfig",
    "Program",
    "Progress",
    "PublishError",
    "PublishOptions",
    "QualityGateError",
    "RecipeError",
    "SilentProgress",
    "TranscribeOptions",
    "Transcriber",
    "UnsupportedOperationError",
    "WktError",
    "__version__",
    "convert",
    "estimate",
    "evaluate",
    "filter_labels",
    "init_student",
    "lint",
    "open_checkpoint",
    "palettize",
    "pseudo_label",
    "publish",
    "pull",
    "report",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names, and what is imported already."""
    return sorted({*__all__, *globals()})
