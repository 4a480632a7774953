"""Recordings that compression heard and the gate judges on, where a compressed bundle looks better than it is."""

from collections.abc import Sequence
from pathlib import Path

from whisperkit_tools.compress.audio_selection import SpeechPiece
from whisperkit_tools.compress.config import PalettizeConfig
from whisperkit_tools.errors import OptionsError, option
from whisperkit_tools.paths import expanded

_SHOWN = 5


def overlapping(gate: Sequence[SpeechPiece], heard: Sequence[SpeechPiece]) -> list[SpeechPiece]:
    """Return the gate's examples from recordings that other pieces are cut from, told by the samples."""
    known = {piece.source_sha256 for piece in heard}
    return [piece for piece in gate if piece.source_sha256 in known]


def require_no_overlap(config: PalettizeConfig, gate: Sequence[SpeechPiece], found: Sequence[SpeechPiece]) -> None:
    """Check that the gate judges on other recordings than those that were heard.

    The demo has two long recordings. Sensitivity needs whole windows, and the gate windows that follow each other, so
    where both use the demo by default both take these two. The manifest and the card state it.

    Args:
        config: The settings.
        gate: The gate's examples.
        found: Those of them whose recordings were heard.

    Raises:
        OptionsError: There is an overlap that the settings do not allow.
    """
    if not found or config.allow_overlap or (config.calibration is None and config.gate_audio is None):
        return
    names = list(dict.fromkeys(piece.source for piece in found))
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    used = "calibration or tuning" if config.tune_steps else "calibration"
    advice = f"choose other speech ({option('calibration')}, {option('gate_audio')})"
    if _same(config.calibration, config.gate_audio):
        advice = (
            f"name distinct folders, {option('calibration')} and {option('gate_audio')} are both {config.gate_audio}"
        )
    raise OptionsError(
        f"{len(found)} of the gate's {len(gate)} examples were also used for {used}: {shown}; {advice}, or accept it "
        f"({option('allow_overlap', True)})"
    )


def _same(one: str | Path | None, other: str | Path | None) -> bool:
    if one is None or other is None:
        return False
    return str(one) == str(other) or expanded(one).resolve() == expanded(other).resolve()
