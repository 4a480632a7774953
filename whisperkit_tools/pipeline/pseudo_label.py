"""Labels of a teacher for speech that nobody transcribed."""

from collections.abc import Sequence
from pathlib import Path

from whisperkit_tools.bundle import Bundle
from whisperkit_tools.compress.speech_source import open_speech
from whisperkit_tools.distill.pseudo_label import Labelling, LabelOptions
from whisperkit_tools.distill.pseudo_label import pseudo_label as label
from whisperkit_tools.errors import DatasetError
from whisperkit_tools.eval.backends.base import EvaluationTarget
from whisperkit_tools.eval.backends.registry import backend_names
from whisperkit_tools.mil.tensor_spec import Precision
from whisperkit_tools.pipeline.arguments import as_bundle, as_numbers
from whisperkit_tools.pipeline.bundle_backend import EXECUTOR, read_audio
from whisperkit_tools.pipeline.candidates import BackendChoice, CandidateOptions, candidates
from whisperkit_tools.pipeline.convert import convert
from whisperkit_tools.pipeline.evaluate import LOCAL, evaluation_engine
from whisperkit_tools.progress import Progress, SilentProgress
from whisperkit_tools.speech import Recording

_TEACHER = ".teacher"


def pseudo_label(
    audio: str | Path | Sequence[Recording],
    *,
    teacher: str | Path | Bundle,
    output_dir: str | Path,
    language: str | None = None,
    no_speech_share: float = 0.0,
    long_form: str | None = None,
    temperature: str | float | Sequence[float] | None = None,
    condition_on_previous_text: bool | None = None,
    precision: Precision = "float32",
    device: str = "",
    workers: int | None = None,
    engine: str = LOCAL,
    address: str | None = None,
    max_failures: int = 10,
    seed: int = 0,
    progress: Progress | None = None,
) -> Labelling:
    """Label speech with a teacher. The same call goes on with an interrupted run.

    Args:
        audio: A folder of audio, a dataset as `evaluate` takes it, or recordings.
        teacher: A bundle, a checkpoint (which is converted into the labels' folder first), or a backend as
            `NAME:MODEL`.
        output_dir: The folder of the labels.
        language: Code of the spoken language. None for that of the dataset, or detected.
        no_speech_share: Share of windows of silence and noise with empty labels.
        long_form: `sequential`, `chunked` or `vad`, for audio of more than 30 s. None for `sequential`.
        temperature: Temperatures to try in order while the result of a window looks wrong. None for 0 to 1.
        condition_on_previous_text: Give each window the text before it as a prompt.
        precision: `float32` or `float16`, which rounds as the device does. For bundles.
        device: PyTorch device. Empty for the backend's choice.
        workers: Number of processes, each with its own teacher. None for 1.
        engine: `local`, or `ray` for a cluster whose machines see audio and teacher at the same paths.
        address: Address of a running Ray cluster. None starts one on this machine.
        max_failures: The run stops when more recordings than this fail.
        seed: Seed of the windows without speech.
        progress: Receives notes and counts.

    Raises:
        OptionsError: A value is out of range, or the folder holds labels of another run.
        DatasetError: The dataset cannot be found or read, or no speech was heard.
        EvaluationError: More recordings failed than allowed. Labels are kept.

    Example:
        >>> import whisperkit_tools as wkt
        >>> labels = wkt.pseudo_label(".", teacher="bundles/acme_whisper-demo", output_dir="labels")
        >>> labels.recordings, labels.empty
        (1, 0)
    """
    progress = progress or SilentProgress()
    options = LabelOptions(language, no_speech_share, seed, max_failures)
    chosen = {
        "long_form": long_form,
        "temperatures": as_numbers("temperature", temperature, "0,0.2,0.4"),
        "condition_on_previous_text": condition_on_previous_text,
    }
    decoding = {name: value for name, value in chosen.items() if value is not None}
    performer = evaluation_engine(engine, address, workers)
    recordings = open_speech(audio, "audio", progress=progress) if isinstance(audio, str | Path) else audio
    if not recordings:
        raise DatasetError(f"{audio} holds no audio")
    target = _teacher(teacher, Path(output_dir), CandidateOptions(decoding, precision, device=device), progress)
    return label(recordings, target, Path(output_dir), options, engine=performer, read=read_audio, progress=progress)


def _teacher(
    teacher: str | Path | Bundle, folder: Path, options: CandidateOptions, progress: Progress
) -> EvaluationTarget:
    """Return the teacher as an evaluation runs it. A checkpoint is converted once."""
    choice = BackendChoice.parse(str(teacher)) if isinstance(teacher, str) else None
    if choice is not None and choice.model is not None and choice.name in backend_names():
        return candidates([], [choice], options)[0]
    if isinstance(teacher, str | Path) and not any(Path(teacher).glob("*.mlpackage")):
        home = folder / _TEACHER
        made = sorted(path for path in home.glob("*") if path.is_dir() and not path.name.startswith("."))
        teacher = made[0] if made else convert(teacher, output_dir=home, word_timestamps=False, progress=progress)
    return candidates([as_bundle(teacher)], [BackendChoice(EXECUTOR, None)], options)[0]
