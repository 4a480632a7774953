"""The settings of a conversion, and its result."""

import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

from whisperkit_tools.bundle import DEFAULT_BUNDLES_DIR
from whisperkit_tools.contract import DEPLOYMENT_TARGETS
from whisperkit_tools.conversion.attention_layout import PLAIN, TURBO_DECODER, TURBO_ENCODER, Layout
from whisperkit_tools.conversion.export import check_stateful_target
from whisperkit_tools.conversion.parity import ComponentParity, ParityGate
from whisperkit_tools.conversion.prefill.build import PrefillOptions, PrefillOutcome
from whisperkit_tools.conversion.verifier import check_draft_tokens
from whisperkit_tools.errors import ConversionError, OptionsError, option


@dataclass(frozen=True, slots=True)
class ConvertConfig:
    """Settings of a conversion.

    Attributes:
        output_dir: The folder that holds bundles.
        deployment_target: The oldest system that is to load the packages, a key of `contract.DEPLOYMENT_TARGETS`.
        kv_length: Positions of the decoder's caches, or None for all that the checkpoint has.
        word_timestamps: Whether the decoder gives out its alignment heads' weights.
        turbo: Whether the bundle has the layout for latency and a prefill, and is named so.
        stateful: Whether the decoder's caches are states (iOS 18, macOS 15), and the bundle is named so. Today's open
            runtime does not load that form.
        audio_encoder_attention: Name of the encoder's attention, or None for the one that `turbo` implies.
        text_decoder_attention: Name of the decoder's attention, or None for the one that `turbo` implies.
        attention_chunk_size: Positions in a chunk of the attentions that work in chunks, or None for the default.
        logits_chunk_size: Maximum number of logits that one product gives, or None for all at once.
        verify: Whether the packages are run and compared before the bundle is put in place.
        compile: Whether `.mlmodelc` folders are added (macOS with Xcode).
        force: Whether an existing bundle is replaced.
        prefill: Whether the bundle has a table of the caches after the forced tokens, or how that is made. None adds
            one with `turbo`, unless the model can have none. True and options demand it, see `PrefillOptions`.
        draft_tokens: Number of tokens that `TextDecoderVerify` takes at once. None for no such package.
        gate: The parity that is required.
    """

    output_dir: Path = DEFAULT_BUNDLES_DIR
    deployment_target: str = "ios16"
    kv_length: int | None = None
    word_timestamps: bool = True
    turbo: bool = False
    stateful: bool = False
    audio_encoder_attention: str | None = None
    text_decoder_attention: str | None = None
    attention_chunk_size: int | None = None
    logits_chunk_size: int | None = None
    verify: bool = True
    compile: bool = False
    force: bool = False
    prefill: PrefillOptions | bool | None = None
    draft_tokens: int | None = None
    gate: ParityGate = field(default_factory=ParityGate)

    def __post_init__(self) -> None:
        """Check the values that need no checkpoint.

        Raises:
            OptionsError: A value is unknown or out of range, or two values contradict each other.
            ConversionError: This machine has no compiler for Core ML packages.
        """
        self._check_types()
        if self.deployment_target not in DEPLOYMENT_TARGETS:
            raise OptionsError(
                f"{option('deployment_target')} is {self.deployment_target!r}; choose from "
                f"{', '.join(DEPLOYMENT_TARGETS)}"
            )
        if self.stateful:
            check_stateful_target(self.deployment_target)
        encoder = self.layout.audio_encoder  # raises for options that make no sense
        if self.turbo and encoder != TURBO_ENCODER:
            raise OptionsError(
                f"{option('turbo')} is the layout with {TURBO_ENCODER!r} for the encoder, but "
                f"{option('audio_encoder_attention')} is {encoder!r}; omit one of the two"
            )
        if self.draft_tokens is not None:
            check_draft_tokens(self.draft_tokens, stateful=self.stateful, verify=self.verify)
        if prefill := self.prefill_options:
            prefill.check_verified(self.verify)
        if self.compile and (sys.platform != "darwin" or shutil.which("xcrun") is None):
            raise ConversionError(
                f"{option('compile')} needs macOS with Xcode's command line tools; omit it: the runtime compiles an "
                ".mlpackage when it first loads it"
            )

    def _check_types(self) -> None:
        """Refuse values of the wrong type, which would otherwise be found in the written manifest.

        Raises:
            OptionsError: All such values are named.
        """
        switches = ("word_timestamps", "turbo", "stateful", "verify", "compile", "force")
        counts = ("kv_length", "attention_chunk_size", "logits_chunk_size", "draft_tokens")
        problems = [
            f"{option(name)} is {getattr(self, name)!r}, expected True or False"
            for name in switches
            if not isinstance(getattr(self, name), bool)
        ]
        for name in counts:
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
                problems.append(f"{option(name)} is {value!r}, expected an integer")
        if problems:
            raise OptionsError("; ".join(problems))

    @property
    def layout(self) -> Layout:
        """The layout of each component. `turbo` implies what was not chosen."""
        return Layout(
            self.audio_encoder_attention or (TURBO_ENCODER if self.turbo else PLAIN),
            self.text_decoder_attention or (TURBO_DECODER if self.turbo else PLAIN),
            self.attention_chunk_size,
            self.logits_chunk_size,
        )

    @property
    def prefill_options(self) -> PrefillOptions | None:
        """How the prefill is made, or None for no prefill."""
        if isinstance(self.prefill, PrefillOptions):
            return self.prefill
        wanted = self.turbo if self.prefill is None else self.prefill
        return PrefillOptions(required=self.prefill is not None) if wanted else None


@dataclass(frozen=True, slots=True)
class ConvertResult:
    """A bundle that was made.

    Attributes:
        path: The variant folder.
        bytes: Size of each package.
        parity: Figures of each package. Empty when not verified.
        seconds: Wall time of the whole conversion.
        notes: Facts that the user should know.
        prefill: The outcome for the prefill. None when there is to be none.
    """

    path: Path
    bytes: dict[str, int]
    parity: tuple[ComponentParity, ...]
    seconds: float
    notes: tuple[str, ...]
    prefill: PrefillOutcome | None = None
