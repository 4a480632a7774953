"""A checkpoint to a verified bundle: export each component, run the written packages, put the folder in place."""

import platform
import shutil
import subprocess
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch

from whisperkit_tools import __version__, contract
from whisperkit_tools.bundle import new_bundle, variant_name
from whisperkit_tools.checkpoint import Checkpoint
from whisperkit_tools.compile_hints.text_decoder import AlignmentHeads, TextDecoder
from whisperkit_tools.contract import (
    COMPONENTS,
    STATE_ALIGNMENT,
    PackageInterface,
    aligned,
    stateful_interfaces,
    verifier_interface,
)
from whisperkit_tools.conversion.alignment_heads import choose_alignment_heads
from whisperkit_tools.conversion.components import COMPUTED_IN_FLOAT32, Components, to_reference_form
from whisperkit_tools.conversion.config import ConvertConfig, ConvertResult
from whisperkit_tools.conversion.contract_check import package_problems, stateful_problems
from whisperkit_tools.conversion.export import PackageMetadata, export_package
from whisperkit_tools.conversion.parity import ComponentParity, require
from whisperkit_tools.conversion.prefill.build import PrefillOutcome, PrefillStage
from whisperkit_tools.conversion.verifier import compare_with_steps, export_verifier
from whisperkit_tools.demo import verification_speech
from whisperkit_tools.errors import ConversionError, OptionsError, option
from whisperkit_tools.files import folder_bytes, write_json
from whisperkit_tools.manifest import (
    ConversionRecord,
    Manifest,
    ParityRecord,
    SourceRecord,
    SpeculationRecord,
    ToolRecord,
    write_manifest,
)
from whisperkit_tools.mil.package import Package
from whisperkit_tools.progress import Progress, SilentProgress

_DESCRIPTIONS = {
    contract.MEL: "Log-mel features of a window of 16 kHz audio",
    contract.ENCODER: "Whisper's audio encoder: log-mel features to audio embeddings",
    contract.DECODER: "Whisper's text decoder: one token a call, key and value caches in, their updates out",
    contract.VERIFIER: "Whisper's text decoder on several tokens a call, to read what a draft has written",
    contract.PREFILL: "The text decoder's caches after start, language and task, looked up",
}
_STATEFUL_DESCRIPTION = (
    f"Whisper's text decoder with caches as states: {contract.WINDOW_FUNCTION} once a window, "
    f"{contract.STEP_FUNCTION} once a token, on one state"
)
MIN_KV_LENGTH = 8
_RECORDED_LIBRARIES = ("coremltools", "numpy", "safetensors", "torch", "transformers")


def convert(checkpoint: Checkpoint, config: ConvertConfig, progress: Progress | None = None) -> ConvertResult:
    """Convert a checkpoint to a bundle. The packages are verified on speech of the demo.

    Args:
        checkpoint: The opened checkpoint.
        config: The settings.
        progress: Receives the stages and notes.

    Raises:
        OptionsError: The options do not fit the checkpoint.
        ConversionError: coremltools refuses the checkpoint, or it can have no prefill although one is required.
        CheckpointError: Weights are damaged.
        QualityGateError: A package does not compute what the checkpoint computes.
        BundleError: The bundle exists.
    """
    start = time.monotonic()
    work = _Conversion(checkpoint, config, progress or SilentProgress())
    name = variant_name(checkpoint.org, checkpoint.model, turbo=config.turbo, stateful=config.stateful)
    target = config.output_dir / name
    with new_bundle(target, force=config.force) as folder:
        work.run(folder)
        parity = tuple(work.parity)
        require(list(parity), config.gate)
        sizes = {path.stem: folder_bytes(path) for path in sorted(folder.glob("*.mlpackage"))}
        write_manifest(folder, _manifest(work, target.name))
    return ConvertResult(target, sizes, parity, time.monotonic() - start, tuple(work.notes), work.prefill)


class _Conversion:
    """The state of one conversion: decisions and measurements so far."""

    def __init__(self, checkpoint: Checkpoint, config: ConvertConfig, progress: Progress) -> None:
        self.checkpoint = checkpoint
        self.config = config
        self.progress = progress
        self.notes = list(checkpoint.notes)
        self.parity: list[ComponentParity] = []
        self.kv_length = _kv_length(checkpoint, config)
        config.layout.check_length(checkpoint.dims.n_audio_ctx)
        self.audio = verification_speech()
        self.heads: AlignmentHeads | None = None
        self.prefill: PrefillOutcome | None = None
        self.speculation: SpeculationRecord | None = None
        self.prefill_stage: PrefillStage | None = None
        if options := config.prefill_options:
            self.prefill_stage = PrefillStage(checkpoint, options, verify=config.verify, progress=progress)
        for note in checkpoint.notes:
            progress.note(note)

    def run(self, folder: Path) -> None:
        """Fill the folder with packages and assets."""
        self.heads = self._alignment_heads()
        with self.progress.stage("checkpoint", "hash"):
            self.sha256 = self.checkpoint.content_sha256
        components = Components(self.checkpoint, self.kv_length, self.heads, self.audio, self.config.layout)
        for name in COMPONENTS:
            self._component(components, name, folder / f"{name}.mlpackage")
        for asset in self.checkpoint.assets:
            shutil.copyfile(asset, folder / asset.name)
        if self.heads != self.checkpoint.alignment_heads and self.heads is not None:
            self._ship_chosen_heads(folder / "generation_config.json")
        if self.prefill_stage:
            self._prefill(self.prefill_stage, folder)
        if self.config.draft_tokens is not None:
            self._verifier(components, self.config.draft_tokens, folder)

    def _alignment_heads(self) -> AlignmentHeads | None:
        if not self.config.word_timestamps or self.checkpoint.alignment_heads:
            return self.checkpoint.alignment_heads if self.config.word_timestamps else None
        with self.progress.stage(contract.DECODER, "alignment heads"):
            choice = choose_alignment_heads(self.checkpoint, [self.audio])
        self.notes.append(f"the checkpoint names no alignment heads; {choice.reason}")
        self.progress.note(self.notes[-1])
        return choice.heads

    def _ship_chosen_heads(self, path: Path) -> None:
        """Write the chosen heads where other tools look for them."""
        generation = {**self.checkpoint.generation_config, "alignment_heads": [list(pair) for pair in self.heads or ()]}
        write_json(path, generation)

    def _component(self, components: Components, name: str, path: Path) -> None:
        """Export and verify one component."""
        with self.progress.stage(name, "load"):
            module = components.load(name)
        with self.progress.stage(name, "export"):
            problems = self._export(components, name, module, path)
        if problems:
            raise ConversionError(f"the export does not keep the runtime's contract: {'; '.join(problems)}")
        if self.config.compile:
            with self.progress.stage(name, "compile"):
                compile_package(path)
        if self.config.verify:
            with self.progress.stage(name, "verify: PyTorch"):
                reference = components.reference(name, to_reference_form(module))
            del module
            with self.progress.stage(name, "verify: package"):
                self.parity.append(reference.compare(path))

    def _prefill(self, stage: PrefillStage, folder: Path) -> None:
        """Add the prefill, or a note on why there is none."""
        self.prefill = stage.run(folder, self._export_prefill)
        if self.prefill.parity is not None:
            self.parity.append(self.prefill.parity)
        if self.prefill.reason:
            self.notes.append("prefill" + ("" if self.prefill.included else " left out") + f": {self.prefill.reason}")
            self.progress.note(self.notes[-1])

    def _verifier(self, components: Components, tokens: int, folder: Path) -> None:
        """Add the decoder on several tokens, and measure how far it is from single steps."""
        target = folder / f"{contract.VERIFIER}.mlpackage"
        interface = verifier_interface(
            self.checkpoint.dims, self.kv_length, tokens, word_timestamps=self.heads is not None
        )
        with self.progress.stage(contract.VERIFIER, "export"):
            decoder = components.load(contract.DECODER)
            assert isinstance(decoder, TextDecoder)
            metadata, system = self._metadata(contract.VERIFIER), self.config.deployment_target
            export_verifier(decoder, interface, target, deployment_target=system, metadata=metadata)
            del decoder
        if self.config.compile:
            compile_package(target)
        with self.progress.stage(contract.VERIFIER, "verify: single steps"):
            start = int(self.checkpoint.generation_config["decoder_start_token_id"])
            single = Package(folder / f"{contract.DECODER}.mlpackage")
            parity, self.speculation = compare_with_steps(single, Package(target), components.embeds, start)
        self.parity.append(parity)

    def _export_prefill(self, module: torch.nn.Module, interface: PackageInterface, path: Path) -> None:
        target = self.config.deployment_target
        export_package(module, interface, path, deployment_target=target, metadata=self._metadata(path.stem))
        if problems := package_problems(path.stem, path, interface):
            raise ConversionError(f"the export does not keep the runtime's contract: {'; '.join(problems)}")
        if self.config.compile:
            compile_package(path)

    def _export(self, components: Components, name: str, module: torch.nn.Module, path: Path) -> list[str]:
        """Write one package, and return its differences from its interface."""
        metadata, target = self._metadata(name), self.config.deployment_target
        if self.config.stateful and isinstance(module, TextDecoder):
            from whisperkit_tools.conversion.stateful import export_stateful

            functions = stateful_interfaces(
                self.checkpoint.dims, self.kv_length, word_timestamps=self.heads is not None
            )
            export_stateful(module, functions, path, deployment_target=target, metadata=metadata)
            return stateful_problems(name, path, functions)
        interface = components.interfaces[name]
        float32 = name in COMPUTED_IN_FLOAT32
        export_package(module, interface, path, deployment_target=target, metadata=metadata, float32=float32)
        return package_problems(name, path, interface)

    def _metadata(self, name: str) -> PackageMetadata:
        checkpoint = self.checkpoint
        revision = checkpoint.revision or next(iter(self.sha256.values()))[:12]
        return PackageMetadata(
            description=_STATEFUL_DESCRIPTION
            if self.config.stateful and name == contract.DECODER
            else _DESCRIPTIONS[name],
            author=f"{checkpoint.org}, converted by whisperkit-tools {__version__}",
            license=checkpoint.license or "see the source model",
            version=revision,
            user_defined={
                "source": f"{checkpoint.org}/{checkpoint.model}",
                "source_revision": revision,
                "whisperkit_tools_version": __version__,
            },
        )


def _kv_length(checkpoint: Checkpoint, config: ConvertConfig) -> int:
    maximum = checkpoint.dims.n_text_ctx
    length = maximum if config.kv_length is None else config.kv_length
    if not MIN_KV_LENGTH <= length <= maximum:
        raise OptionsError(
            f"{option('kv_length')} is {length}, allowed are {MIN_KV_LENGTH} to {maximum}, the positions that the "
            "decoder has"
        )
    if config.stateful and length % STATE_ALIGNMENT:
        shorter, longer = length // STATE_ALIGNMENT * STATE_ALIGNMENT, aligned(length)
        raise OptionsError(
            f"{option('kv_length')} is {length}, but caches that are states need a multiple of {STATE_ALIGNMENT} to "
            f"run on the Neural Engine (apple/coremltools#2631); the next are {shorter} and {longer}"
        )
    return length


def _manifest(work: _Conversion, variant: str) -> Manifest:
    checkpoint, config = work.checkpoint, work.config
    return Manifest(
        variant=variant,
        tool=ToolRecord(name="whisperkit-tools", version=__version__),
        libraries={name: version(name) for name in _RECORDED_LIBRARIES},
        python=platform.python_version(),
        source=SourceRecord(
            name=checkpoint.source,
            org=checkpoint.org,
            model=checkpoint.model,
            revision=checkpoint.revision,
            license=checkpoint.license,
            sha256=work.sha256,
            format=checkpoint.format,
        ),
        dimensions=checkpoint.dims,
        conversion=_conversion_record(work),
        parity=ParityRecord(
            gate=asdict(config.gate),
            psnr_db={
                item.component: {"float32": _rounded(item.float32_db), "float16": _rounded(item.float16_db)}
                for item in work.parity
            },
        ),
        prefill=work.prefill.recorded() if work.prefill else None,
        speculation=work.speculation,
    )


def _conversion_record(work: _Conversion) -> ConversionRecord:
    config = work.config
    return ConversionRecord(
        deployment_target=config.deployment_target,
        kv_length=work.kv_length,
        word_timestamps=work.heads is not None,
        alignment_heads=tuple(work.heads or ()),
        turbo=config.turbo,
        stateful=config.stateful,
        audio_encoder_attention=config.layout.audio_encoder,
        text_decoder_attention=config.layout.text_decoder,
        attention_chunk_size=config.layout.chunk_size,
        logits_chunk_size=config.layout.logits_chunk_size,
        compiled=config.compile,
        verified=config.verify,
        notes=tuple(work.notes),
    )


def _rounded(figures: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 2) for name, value in figures.items()}


def compile_package(path: Path) -> None:
    """Compile an `.mlpackage` to the `.mlmodelc` beside it (macOS with Xcode).

    Raises:
        ConversionError: The compiler fails.
    """
    command = ["xcrun", "coremlcompiler", "compile", str(path), str(path.parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr or done.stdout).strip().splitlines()
        raise ConversionError(f"coremlcompiler failed on {path.name}: {reason[-1] if reason else done.returncode}")
