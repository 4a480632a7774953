"""Formats that cannot be converted, recognised so that a message can say what to give instead."""

from collections.abc import Sequence
from pathlib import Path

_GIVE = "give the checkpoint that it was made from (a Hugging Face folder or Hub id, or OpenAI's .pt)"
# What a file's name ends with, and what it is then.
_ENDINGS = (
    (".gguf", "is a GGUF model"),
    (".onnx", "is an ONNX export"),
    (".tflite", "is a TensorFlow Lite model"),
    (".nemo", "is a NeMo model, which is not a Whisper"),
    (".mlmodelc", "is a compiled Core ML model"),
    (".mlpackage", "is a Core ML package already"),
    (".mlmodel", "is a Core ML model already"),
    (".engine", "is a TensorRT engine"),
    (".msgpack", "holds Flax weights"),
    (".h5", "holds TensorFlow weights"),
    ("_model.xml", "is an OpenVINO model"),
    (".xml", "is an OpenVINO model"),
)


def other_format(names: Sequence[str], file: Path | None = None) -> str | None:
    """Return what some files are and what to give instead, or None when they are not known.

    Args:
        names: Names of the files of a folder, or of one file.
        file: The file, when it is one, to look into.
    """
    if file is not None and file.is_file():
        with file.open("rb") as stream:
            start = stream.read(4)
        if start == b"GGUF":
            return f"is a GGUF model; {_GIVE}, or whisper.cpp's ggml-*.bin"
    for ending, what in _ENDINGS:
        if any(name.endswith(ending) for name in names):
            more = ", or whisper.cpp's ggml-*.bin" if ending == ".gguf" else ""
            return f"{what}; {_GIVE}{more}"
    return None
