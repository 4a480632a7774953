"""`wkt init-student`: a checkpoint with some of its teacher's layers."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

import whisperkit_tools as wkt
from whisperkit_tools.cli import options
from whisperkit_tools.cli.output import note, show, show_json
from whisperkit_tools.cli.progress import ConsoleProgress


@click.command()
@click.argument("teacher")
@click.option("-o", "--output-dir", type=options.PATH, required=True, help="Checkpoint folder of the student.")
@click.option(
    "--decoder-layers",
    default="2",
    show_default=True,
    metavar="N|I,J[,...]",
    help="Number of decoder layers, taken maximally spaced (the first, the last, others evenly between), or their "
    "indices from 0.",
)
@click.option(
    "--encoder-layers",
    metavar="N|I,J[,...]",
    help="Likewise for the encoder.  [default: all, so that the encoder is shared with the teacher]",
)
@click.option("--revision", help="Branch, tag or commit of a Hub checkpoint. Its commit is recorded.")
@options.allow_pickle
@options.force
@options.json_output
def command(teacher: str, output_dir: Path, as_json: bool, **chosen: Any) -> None:
    """Make a student for distillation from some of a teacher's layers.

    TEACHER is a checkpoint as `wkt convert` takes it. The student keeps the teacher's tokenizer, embeddings and
    precision. Its alignment heads are chosen anew, on speech. The folder is one that transformers loads.
    """
    with ConsoleProgress() as progress:
        student = wkt.init_student(teacher, output_dir=output_dir, **chosen, progress=progress)
    if as_json:
        show_json({**asdict(student), "folder": str(student.folder)})
        return
    for line in student.notes:
        note(line)
    for part, indices in student.layers.items():
        show(f"{part:<12} layers {', '.join(map(str, indices))}")
    share = 100 * student.parameters / student.teacher_parameters
    show(f"parameters   {student.parameters / 1e6:.1f} M, {share:.0f} % of the teacher's")
    show(student.folder)
