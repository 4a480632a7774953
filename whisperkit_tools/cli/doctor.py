"""`wkt doctor`: what this machine supports."""

import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version

import click

from whisperkit_tools.cli import options
from whisperkit_tools.cli.output import show, show_json

_LIBRARIES = (
    "torch",
    "coremltools",
    "transformers",
    "numpy",
    "huggingface-hub",
    "safetensors",
    "soundfile",
    "av",
    "soxr",
)


@click.command()
@options.json_output
def command(as_json: bool) -> None:
    """Show what this machine supports.

    Core ML, Xcode, GPU, audio formats, Hub login, and the versions of the libraries.
    """
    findings = {"system": _system(), "compute": _compute(), "audio": _audio(), "hub": _hub(), "versions": _versions()}
    if as_json:
        show_json(findings)
        return
    for title, entries in findings.items():
        show(title)
        for name, value in entries.items():
            show(f"  {name:<18} {value}")


def _system() -> dict[str, str]:
    macos = sys.platform == "darwin"
    xcode = macos and shutil.which("xcrun") is not None
    return {
        "platform": platform.platform(),
        "core ml": "yes: `--backend coreml` runs bundles on it"
        if macos
        else "no (needs macOS): bundles run on PyTorch",
        "xcode": "yes: `wkt convert --compile` works" if xcode else "no: bundles hold .mlpackage only",
    }


def _compute() -> dict[str, str]:
    import torch

    cuda = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no"
    return {
        "cpu threads": str(torch.get_num_threads()),
        "cuda": cuda,
        "mps": "yes" if torch.backends.mps.is_available() else "no",
    }


def _audio() -> dict[str, str]:
    findings = {}
    try:
        import soundfile

        formats = soundfile.available_formats()
        names = [name for name in ("WAV", "FLAC", "MP3", "OGG") if name in formats]
        findings["soundfile"] = f"{', '.join(names).lower()} ({soundfile.__libsndfile_version__})"
    except (ImportError, OSError) as error:
        findings["soundfile"] = f"does not load: {error}"
    try:
        import av

        findings["av"] = f"m4a and whatever FFmpeg {'.'.join(map(str, av.library_versions['libavformat']))} reads"
    except (ImportError, OSError) as error:
        findings["av"] = f"does not load: {error}"
    return findings


def _hub() -> dict[str, str]:
    from huggingface_hub import constants, get_token

    offline = "yes (HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else "no"
    login = "yes, a token is there" if get_token() else "no: `hf auth login`, needed for gated models and publishing"
    return {"endpoint": constants.ENDPOINT, "offline": offline, "logged in": login, "cache": constants.HF_HUB_CACHE}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("whisperkit-tools", *_LIBRARIES):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
