"""The tasks of a run, and the key that identifies the run."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from whisperkit_tools.errors import OptionsError, option
from whisperkit_tools.eval.backends.base import EvaluationTarget
from whisperkit_tools.eval.datasets.dataset import Dataset
from whisperkit_tools.eval.metrics import open_asr
from whisperkit_tools.eval.metrics.normalize import NORMALIZER_EDITION
from whisperkit_tools.eval.runs.noise import NOISE_KINDS, SNR_LIMITS_DB, no_speech_examples, with_noise
from whisperkit_tools.eval.runs.worker import CLEAN, NO_SPEECH, NOISE, STREAMING, Task
from whisperkit_tools.files import sha256_of_json
from whisperkit_tools.speech import AudioReader, Recording

SCORERS = ("plain", open_asr.NAME)


@dataclass(frozen=True, slots=True)
class EvaluateConfig:
    """Settings of an evaluation: the measurements of every example, and the scoring.

    Attributes:
        normalizer: Applied before scoring. `auto` chooses by language.
        scorer: `plain`, or `open-asr` for the word errors of the Open ASR Leaderboard beside the plain ones.
            Transcripts do not depend on it, so the same run gets them.
        gives_language: Whether the backend gets the language that the dataset declares.
        words: Whether word times are requested.
        noise_snr_db: Signal-to-noise ratios of the robustness curve. Empty for none.
        noise_kinds: Kinds of noise, one curve each.
        checks_no_speech: Whether clips without speech are transcribed.
        streaming: Whether live transcription is simulated.
        hop_s: Hop of the simulation.
        max_failures: The run stops when more examples than this have failed.
        seed: Random seed of the noise and the bootstrap.

    Raises:
        OptionsError: Naming all values that are out of range.
    """

    normalizer: str = "auto"
    scorer: str = SCORERS[0]
    gives_language: bool = True
    words: bool = False
    noise_snr_db: tuple[float, ...] = ()
    noise_kinds: tuple[str, ...] = NOISE_KINDS
    checks_no_speech: bool = True
    streaming: bool = False
    hop_s: float = 1.0
    max_failures: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        """Check all values at once."""
        problems = []
        low, high = SNR_LIMITS_DB
        wrong = [value for value in self.noise_snr_db if not low <= value <= high]
        if wrong:
            problems.append(f"{option('noise_snr_db')} {wrong} are not ratios between {low:g} and {high:g} dB")
        if len(set(self.noise_snr_db)) != len(self.noise_snr_db):
            problems.append(f"{option('noise_snr_db')} {list(self.noise_snr_db)} names a ratio twice")
        unknown = sorted(set(self.noise_kinds) - set(NOISE_KINDS))
        if unknown:
            problems.append(f"{option('noise_kinds')} {unknown} are unknown, allowed are {', '.join(NOISE_KINDS)}")
        if not (math.isfinite(self.hop_s) and 0 < self.hop_s <= 15):
            problems.append(f"{option('hop_s')} is {self.hop_s}, expected more than 0 and at most 15")
        if self.scorer not in SCORERS:
            problems.append(f"{option('scorer')} is {self.scorer!r}, allowed are {', '.join(SCORERS)}")
        if self.max_failures < 0:
            problems.append(f"{option('max_failures')} is {self.max_failures}, expected 0 or more")
        if problems:
            raise OptionsError("the evaluation cannot run: " + "; ".join(problems))

    @property
    def keyed(self) -> dict[str, Any]:
        """The values that change the result, JSON-ready."""
        values = asdict(self)
        del values["max_failures"], values["scorer"]
        values["normalizer_version"] = NORMALIZER_EDITION
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def tasks(dataset: Dataset, config: EvaluateConfig, read: AudioReader) -> list[Task]:
    """Return the tasks of a run in order: the examples as they are, in noise, clips without speech, live.

    Args:
        dataset: Its examples.
        config: The measurements.
        read: Decodes the recordings that babble is made of.

    Raises:
        OptionsError: There are too few recordings for babble.
    """
    planned: list[tuple[str, str, Recording]] = [(CLEAN, "", example) for example in dataset.examples]
    for kind in config.noise_kinds:
        for snr_db in config.noise_snr_db:
            altered = with_noise(dataset.examples, kind, snr_db, read, config.seed)
            planned += [(NOISE, f"{kind}@{snr_db:g}", example) for example in altered]
    if config.checks_no_speech:
        planned += [(NO_SPEECH, "", example) for example in no_speech_examples(config.seed)]
    if config.streaming:
        planned += [(STREAMING, "", example) for example in dataset.examples]
    return [
        Task(
            number,
            part,
            condition,
            example,
            language=example.language if config.gives_language else None,
            words=config.words,
            hop_s=config.hop_s,
        )
        for number, (part, condition, example) in enumerate(planned)
    ]


def run_key(target: EvaluationTarget, dataset: Dataset, config: EvaluateConfig) -> str:
    """Return the digest of everything that determines the results. Equal keys are the same run.

    A bundle counts by its content, not by its name or place. This package's version counts, because another one may
    decode or score differently.
    """
    from whisperkit_tools import __version__

    backend = target.backend
    content: Mapping[str, Any] = {
        "backend": backend.name,
        "model": backend.identity or backend.model,
        "options": backend.options,
        "dataset": dataset.fingerprint,
        "config": config.keyed,
        "version": __version__,
    }
    return sha256_of_json(content)
