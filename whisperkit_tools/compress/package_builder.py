"""Writing a compressed bundle's packages, and running them to verify that they are as intended."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from whisperkit_tools.bundle import Bundle
from whisperkit_tools.contract import DECODER, EMBEDS, ENCODER, FEATURES, MODEL_COMPONENTS, VERIFIER
from whisperkit_tools.decoder.teacher_forcing import SpeechWindow, TeacherForcing
from whisperkit_tools.errors import QualityGateError
from whisperkit_tools.manifest import MANIFEST
from whisperkit_tools.memory import release_memory
from whisperkit_tools.mil.program import Program
from whisperkit_tools.quantization.package_writer import read_dense, write_compressed
from whisperkit_tools.quantization.palette import Palettized
from whisperkit_tools.signals import psnr_db

MIN_PSNR_DB = 70.0
FloatArray = NDArray[np.float32]
Palettes = Mapping[str, Mapping[str, Palettized]]


def write_packages(source: Bundle, palettes: Palettes, folder: Path) -> None:
    """Fill a folder with a bundle's files and compressed encoder and decoder. The caller writes the manifest."""
    compressed = {f"{name}.mlpackage" for name in MODEL_COMPONENTS if palettes.get(name)}
    for item in sorted(source.path.iterdir()):
        # The runtime would prefer compiled models beside the packages, and those have the uncompressed weights.
        # TextDecoderVerify has the uncompressed weights too, so its choices are not those of the compressed decoder.
        if item.stem == VERIFIER and compressed:
            continue
        if item.name == MANIFEST or item.name in compressed or item.suffix == ".mlmodelc" or item.name.startswith("."):
            continue
        if item.is_dir():
            shutil.copytree(item, folder / item.name)
        else:
            shutil.copyfile(item, folder / item.name)
    for name in MODEL_COMPONENTS:
        if palettes.get(name):
            write_compressed(source.package(name).path, palettes[name], folder / f"{name}.mlpackage")


def verify_packages(source: Bundle, palettes: Palettes, folder: Path, window: SpeechWindow) -> dict[str, float]:
    """Compare the written packages with the uncompressed programs that have the intended weights.

    Returns:
        PSNR in dB of each component in float32.

    Raises:
        QualityGateError: A weight differs from the intended one, or a component computes something else.
    """
    problems = [
        line
        for name in MODEL_COMPONENTS
        for line in _different_weights(folder / f"{name}.mlpackage", palettes.get(name, {}))
    ]
    if problems:
        raise QualityGateError(f"the written packages do not hold the intended weights: {'; '.join(problems)}")
    intended, written = _outputs(source.path, palettes, window), _outputs(folder, {}, window)
    figures = {name: round(psnr_db(intended[name], written[name]), 2) for name in MODEL_COMPONENTS}
    if short := {name: value for name, value in figures.items() if not value >= MIN_PSNR_DB}:
        raise QualityGateError(
            f"the written packages do not compute what was intended: {short} dB, at least {MIN_PSNR_DB:g} is required"
        )
    return figures


def _outputs(folder: Path, palettes: Palettes, window: SpeechWindow) -> dict[str, FloatArray]:
    """Return the outputs of the components in a folder with these weights. One is loaded at a time."""
    embeds = _load(folder, ENCODER, palettes).run({FEATURES: window.features})[EMBEDS]
    logits = TeacherForcing(_load(folder, DECODER, palettes)).sequential(window, embeds).logits
    return {ENCODER: embeds.numpy(), DECODER: logits.numpy()}


def _load(folder: Path, component: str, palettes: Palettes) -> Program:
    release_memory()
    program = Program.load(folder / f"{component}.mlpackage")
    with torch.no_grad():
        for name, part in palettes.get(component, {}).items():
            program.weights[name].copy_(torch.from_numpy(part.dense().astype(np.float32)))
    return program


def _different_weights(package: Path, palettes: Mapping[str, Palettized]) -> list[str]:
    """Return one line for each weight of a written package that is not bit-identical to the intended one."""
    counts = {name: np.count_nonzero(dense != palettes[name].dense()) for name, dense in read_dense(package, palettes)}
    return [f"{package.name}: {name} differs in {count} elements" for name, count in counts.items() if count]
