"""A student: a checkpoint with some of its teacher's layers.

Source: Gandhi et al. 2023, "Distil-Whisper", arXiv 2311.00430, section 3.1: the student takes the teacher's encoder
whole, and maximally spaced layers of its decoder.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from whisperkit_tools.checkpoint import Checkpoint, open_checkpoint
from whisperkit_tools.conversion.alignment_heads import choose_alignment_heads
from whisperkit_tools.distill.checkpoint_folder import check_target, write_checkpoint
from whisperkit_tools.errors import OptionsError, option
from whisperkit_tools.progress import Progress, SilentProgress

RECORD = "distillation.json"
_PARTS = ("encoder", "decoder")


@dataclass(frozen=True, slots=True)
class StudentLayers:
    """The layers that a student takes from its teacher.

    Attributes:
        decoder: A number of layers, maximally spaced, or the layers' indices.
        encoder: Likewise. None for all of them.

    Raises:
        OptionsError: A number is below 1, or indices are missing, negative or not in rising order.
    """

    decoder: int | tuple[int, ...] = 2
    encoder: int | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Check the numbers that can be checked without the teacher."""
        problems = [
            *_spec_problems("decoder_layers", self.decoder),
            *([] if self.encoder is None else _spec_problems("encoder_layers", self.encoder)),
        ]
        if problems:
            raise OptionsError("; ".join(problems))

    def of(self, teacher: Checkpoint) -> dict[str, tuple[int, ...]]:
        """Return the indices of the layers that are taken, by `encoder` and `decoder`.

        Raises:
            OptionsError: The teacher has fewer layers.
        """
        dims = teacher.dims
        encoder = dims.encoder_layers if self.encoder is None else self.encoder
        found, problems = {}, []
        for part, spec, count in (
            ("encoder", encoder, dims.encoder_layers),
            ("decoder", self.decoder, dims.decoder_layers),
        ):
            name = option(f"{part}_layers")
            highest = spec - 1 if isinstance(spec, int) else max(spec)
            if highest >= count:
                asked = f"{spec} layers" if isinstance(spec, int) else f"layer {highest}"
                problems.append(f"{name} asks for {asked}, but the teacher has {count} (0 to {count - 1})")
            else:
                found[part] = maximally_spaced(spec, count) if isinstance(spec, int) else spec
        if problems:
            raise OptionsError("; ".join(problems))
        return found


@dataclass(frozen=True, slots=True)
class Student:
    """A student that was written.

    Attributes:
        folder: Its checkpoint folder.
        layers: The teacher's layers that it took, by `encoder` and `decoder`.
        parameters: Its parameters.
        teacher_parameters: Its teacher's.
        notes: Facts that the user should know.
    """

    folder: Path
    layers: dict[str, tuple[int, ...]]
    parameters: int
    teacher_parameters: int
    notes: tuple[str, ...] = field(default=())


def maximally_spaced(count: int, layers: int) -> tuple[int, ...]:
    """Return `count` of `layers` indices: the first, the last, and others evenly between. One alone is the first."""
    if count == 1:
        return (0,)
    return tuple(int(index) for index in np.linspace(0, layers - 1, count).round())


def init_student(
    teacher: Checkpoint,
    folder: Path,
    layers: StudentLayers | None = None,
    *,
    speech: Sequence[NDArray[np.float32]] = (),
    force: bool = False,
    progress: Progress | None = None,
) -> Student:
    """Write a student of a teacher as a checkpoint folder.

    Args:
        teacher: The teacher.
        folder: The folder to make.
        layers: The layers to take.
        speech: Windows of speech `[480000]` on which alignment heads are chosen. Empty for no choice.
        force: Replace a checkpoint that is there.
        progress: Told of the stages.

    Raises:
        OptionsError: The teacher has fewer layers.
        CheckpointError: The folder exists, or the teacher's weights cannot be read.
    """
    progress = progress or SilentProgress()
    taken = (layers or StudentLayers()).of(teacher)
    check_target(folder, force=force)
    with progress.stage("student", f"layers {_shown(taken['decoder'])} of the decoder"):
        tensors = student_tensors(teacher, taken)
    generation = {name: value for name, value in teacher.generation_config.items() if name != "alignment_heads"}
    written = {"config": student_config(teacher, taken), "records": {RECORD: _record(teacher, taken)}}
    write_checkpoint(folder, teacher, tensors, generation_config=generation, force=force, **written)
    notes: tuple[str, ...] = ()
    if speech:
        with progress.stage("student", "alignment heads"):
            generation, notes = with_alignment_heads(folder, generation, speech)
        write_checkpoint(folder, teacher, tensors, generation_config=generation, force=True, **written)
    size = sum(tensor.numel() for tensor in tensors.values())
    whole = sum(int(np.prod(stored.shape)) for stored in _own_tensors(teacher).values())
    return Student(folder, taken, size, whole, notes)


def student_tensors(teacher: Checkpoint, taken: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return the student's tensors by name, in the teacher's precision.

    Args:
        teacher: The teacher.
        taken: The layers that are taken, by `encoder` and `decoder`.
    """
    found = {}
    for name, stored in _own_tensors(teacher).items():
        part, group, *rest = name.split(".")
        if group != "layers":
            found[name] = stored.read()
        elif (index := int(rest[0])) in taken[part]:
            found[".".join([part, group, str(taken[part].index(index)), *rest[1:]])] = stored.read()
    return found


def student_config(teacher: Checkpoint, taken: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return the content of the student's `config.json`."""
    changed = {f"{part}_layers": len(taken[part]) for part in _PARTS}
    return {**teacher.config, **changed, "num_hidden_layers": changed["encoder_layers"]}


def with_alignment_heads(
    folder: Path, generation_config: dict[str, Any], speech: Sequence[NDArray[np.float32]]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Choose a checkpoint's alignment heads on speech. Its teacher's do not exist in it, or are other heads.

    Args:
        folder: The checkpoint.
        generation_config: Its generation config, without heads.
        speech: Windows `[480000]`.

    Returns:
        The generation config with the heads, if some follow the speech, and the reason of the choice.
    """
    opened = open_checkpoint(f"{folder.resolve()}")
    choice = choose_alignment_heads(replace(opened, alignment_heads=None), speech)
    if choice.heads is None:
        return generation_config, (choice.reason,)
    return {**generation_config, "alignment_heads": [list(head) for head in choice.heads]}, (choice.reason,)


def _own_tensors(teacher: Checkpoint) -> dict[str, Any]:
    """Return the tensors of encoder and decoder. The output layer is the token embedding, so it is left out."""
    return {name: stored for name, stored in teacher.tensors.items() if name.startswith(("encoder.", "decoder."))}


def _record(teacher: Checkpoint, taken: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    dims = teacher.dims
    return {
        "teacher": teacher.source,
        "teacher_revision": teacher.revision,
        "teacher_sha256": teacher.content_sha256,
        **{f"{part}_layers": list(taken[part]) for part in _PARTS},
        "teacher_layers": {"encoder": dims.encoder_layers, "decoder": dims.decoder_layers},
        "shares_encoder": len(taken["encoder"]) == dims.encoder_layers,
    }


def _spec_problems(name: str, spec: int | tuple[int, ...]) -> list[str]:
    if isinstance(spec, int):
        return [] if spec >= 1 else [f"{option(name)} is {spec}; the minimum is 1"]
    if not spec or min(spec) < 0 or list(spec) != sorted(set(spec)):
        return [f"{option(name)} names layers {_shown(spec)}; expected indices from 0 in rising order"]
    return []


def _shown(indices: Sequence[int]) -> str:
    return ", ".join(map(str, indices)) or "none"
