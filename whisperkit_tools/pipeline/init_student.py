"""A student made of some of its teacher's layers."""

from collections.abc import Iterable
from pathlib import Path

from whisperkit_tools.checkpoint import Checkpoint, open_checkpoint
from whisperkit_tools.demo import verification_speech
from whisperkit_tools.distill.student import Student, StudentLayers
from whisperkit_tools.distill.student import init_student as write_student
from whisperkit_tools.errors import OptionsError, option
from whisperkit_tools.progress import Progress


def init_student(
    teacher: str | Path | Checkpoint,
    *,
    output_dir: str | Path,
    decoder_layers: str | int | Iterable[int] = 2,
    encoder_layers: str | int | Iterable[int] | None = None,
    revision: str | None = None,
    allow_pickle: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Student:
    """Make a student for distillation from some of a teacher's layers.

    Args:
        teacher: An alias, a Hub id, a folder, an OpenAI `.pt` file, `demo`, or an opened checkpoint.
        output_dir: The student's checkpoint folder, which transformers loads.
        decoder_layers: A number of decoder layers, taken maximally spaced, or indices such as `0,5` (`3,` for one).
        encoder_layers: Likewise for the encoder. None takes all, so that the student shares its teacher's encoder.
        revision: Branch, tag or commit of a Hub teacher.
        allow_pickle: Read pickled weights, without running code in them.
        force: Replace an existing checkpoint.
        progress: Receives stages.

    Raises:
        OptionsError: The teacher has fewer layers, or a value is not a number of layers.
        CheckpointError: The teacher cannot be found or read, or the folder exists.

    Example:
        >>> import whisperkit_tools as wkt
        >>> wkt.init_student("demo", output_dir="student", decoder_layers=1).layers["decoder"]
        (0,)
    """
    decoder = as_layers("decoder_layers", decoder_layers)
    encoder = None if encoder_layers is None else as_layers("encoder_layers", encoder_layers)
    layers = StudentLayers(decoder, encoder)
    opened = (
        teacher
        if isinstance(teacher, Checkpoint)
        else open_checkpoint(str(teacher), revision=revision, allow_pickle=allow_pickle)
    )
    speech = [verification_speech()]
    return write_student(opened, Path(output_dir), layers, speech=speech, force=force, progress=progress)


def as_layers(field: str, value: str | int | Iterable[int]) -> int | tuple[int, ...]:
    """Return a number of layers, or their indices where the text has a comma.

    Args:
        field: The option, for the message.
        value: For example `2`, `(0, 5)` or `"0,5"`.

    Raises:
        OptionsError: The text is neither.
    """
    if isinstance(value, int):
        return value
    if not isinstance(value, str):
        return tuple(value)
    parts = [part.strip() for part in value.removesuffix(",").split(",")]
    if not all(part.isdigit() for part in parts):
        raise OptionsError(f"{option(field)}: {value!r} is neither a number of layers nor indices such as 0,5")
    numbers = tuple(int(part) for part in parts)
    return numbers if "," in value else numbers[0]
