"""The names of checkpoints as users write them, and as the names of bundles carry them."""

import difflib
import re

ORG_OF_LOCAL = "local"
"""Organisation in the bundle name of a checkpoint that has no Hub id."""


def aliases() -> dict[str, str]:
    """Return the Hub id of each short name, in order of size."""
    openai = ["tiny", "tiny.en", "base", "base.en", "small", "small.en", "medium", "medium.en"]
    openai += ["large-v2", "large-v3", "large-v3-turbo"]
    distilled = ["small.en", "medium.en", "large-v2", "large-v3", "large-v3.5"]
    return {
        **{name: f"openai/whisper-{name}" for name in openai},
        "large-v1": "openai/whisper-large",
        "large": "openai/whisper-large-v3",  # as OpenAI's own package has it
        "turbo": "openai/whisper-large-v3-turbo",
        **{f"distil-{name}": f"distil-whisper/distil-{name}" for name in distilled},
    }


def looks_like_hub_id(source: str) -> bool:
    """Return whether the name has the form `organisation/repository`."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", source) is not None


def nearest(source: str, candidates: list[str]) -> str:
    """Return a sentence that suggests the nearest names, or lists all of them when none is near."""
    close = difflib.get_close_matches(source.lower(), candidates, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"known names: {', '.join(candidates)}"


def name_part(name: str) -> str:
    """Return `name` as a part of a bundle's name.

    Characters that a folder name cannot hold are replaced. No underscore is at its ends, because one stands between
    two parts.
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "model"


def published_names(hub_id: str) -> tuple[str, str]:
    """Return the organisation and the model name of a Hub id, as bundles carry them.

    OpenAI's turbo model goes by its date, because the suffix `_turbo` of a bundle means something else.
    Source: the runtime's naming of its model folders.
    """
    org, _, model = hub_id.partition("/")
    if (org, model) == ("openai", "whisper-large-v3-turbo"):
        model = "whisper-large-v3-v20240930"
    return name_part(org), name_part(model)
