"""Bundles of the embedded demo, converted once for all processes of a test run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock


def converted_demo(root: Path, *, prefill: Callable[[], Any] | None = None, **options: Any) -> Path:
    """Convert the embedded demo into the folder `root`, unless another process of this run has done so.

    Args:
        root: A folder that only bundles of these options use.
        prefill: Returns the prefill options. It is called only if the bundle has to be made.
        options: Fields of the conversion's config.
    """
    from whisperkit_tools.checkpoint import open_checkpoint
    from whisperkit_tools.conversion.config import ConvertConfig
    from whisperkit_tools.conversion.convert import convert

    with FileLock(f"{root}.lock"):
        if not root.is_dir():
            config = ConvertConfig(output_dir=root, prefill=prefill() if prefill else False, **options)
            convert(open_checkpoint("demo"), config)
    return next(path for path in root.iterdir() if not path.name.startswith("."))


def demo_prefill() -> Any:
    """Return options of a prefill that is made from half of ten utterances and judged on the other half."""
    from whisperkit_tools.conversion.prefill.audio import demo_clips
    from whisperkit_tools.conversion.prefill.build import PrefillOptions
    from whisperkit_tools.speech import Recording

    recordings = tuple(Recording(clip.id, clip.text, samples=clip.samples) for clip in demo_clips()[:10])
    return PrefillOptions(audio=recordings, max_wer_delta=100)
