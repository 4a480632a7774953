"""Names, shapes and types of each package's inputs and outputs: what the on-device runtime reads.

Source: argmaxinc/argmax-oss-swift, read at v0.18 to v1.1.0. The runtime takes its dimensions from the declared shapes
of `logits`, `key_cache`, `encoder_output_embeds` and `melspectrogram_features`, and copies the caches as raw float16.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from whisperkit_tools.compile_hints.dimensions import ModelDimensions
from whisperkit_tools.compile_hints.mel_spectrogram import N_SAMPLES
from whisperkit_tools.compile_hints.stateful_decoder import state_shapes
from whisperkit_tools.mil.coreml import import_coremltools

PREFILL = "TextDecoderContextPrefill"
STEP_FUNCTION = "main"
WINDOW_FUNCTION = "project_audio"
DType = Literal["float16", "float32", "int32"]


@dataclass(frozen=True, slots=True)
class TensorInterface:
    """One input or output.

    Attributes:
        shape: Its declared, static shape.
        dtype: The type that we declare.
        accepted: All types that the runtime takes.
    """

    shape: tuple[int, ...]
    dtype: DType = "float16"
    accepted: tuple[DType, ...] = ("float16",)


@dataclass(frozen=True, slots=True)
class PackageInterface:
    """Inputs, outputs and states of a function by name, in order; `optional` outputs may be left away."""

    inputs: dict[str, TensorInterface]
    outputs: dict[str, TensorInterface]
    optional: frozenset[str] = frozenset()
    states: dict[str, TensorInterface] = field(default_factory=dict)


def package_interfaces(dims: ModelDimensions, kv_length: int, *, word_timestamps: bool) -> dict[str, PackageInterface]:
    """The interfaces of a bundle's packages, by component.

    Args:
        dims: The model's sizes.
        kv_length: Positions of the decoder's caches.
        word_timestamps: Whether the decoder gives out its alignment heads' weights.
    """
    features = {"melspectrogram_features": TensorInterface((1, dims.n_mels, 1, dims.n_frames))}
    embeds = {"encoder_output_embeds": TensorInterface((1, dims.d_model, 1, dims.n_audio_ctx))}
    # Float32 comes first for audio: rounded to float16, its noise floor rises above the 80 dB that Whisper looks at.
    audio = {"audio": TensorInterface((N_SAMPLES,), "float32", ("float32", "float16"))}
    return {
        "MelSpectrogram": PackageInterface(audio, features),
        "AudioEncoder": PackageInterface(features, embeds),
        "TextDecoder": _decoder_interface(dims, kv_length, embeds, word_timestamps),
    }


def _decoder_interface(
    dims: ModelDimensions, kv_length: int, embeds: dict[str, TensorInterface], word_timestamps: bool
) -> PackageInterface:
    token = TensorInterface((1,), "int32", ("int32",))
    channels = dims.d_model * dims.decoder_layers
    cache, update = TensorInterface((1, channels, 1, kv_length)), TensorInterface((1, channels, 1, 1))
    mask = TensorInterface((1, kv_length))
    inputs = {
        "input_ids": token,
        "cache_length": token,
        "key_cache": cache,
        "value_cache": cache,
        "kv_cache_update_mask": mask,
        **embeds,
        "decoder_key_padding_mask": mask,
    }
    outputs = {
        "logits": TensorInterface((1, 1, dims.vocab_size)),
        "key_cache_updates": update,
        "value_cache_updates": update,
    }
    if word_timestamps:
        outputs["alignment_heads_weights"] = TensorInterface((1, dims.n_audio_ctx))
    return PackageInterface(inputs, outputs, frozenset({"alignment_heads_weights"}))


def prefill_interface(dims: ModelDimensions, forced: int) -> PackageInterface:
    """The interface of the table of caches after the forced tokens.

    Args:
        dims: The model's sizes.
        forced: How many tokens every answer starts with.
    """
    one = TensorInterface((1,), "int32", ("int32",))
    cache = TensorInterface((1, dims.d_model * dims.decoder_layers, 1, forced))
    outputs = {"key_cache_prefill": cache, "value_cache_prefill": cache}
    return PackageInterface({"task": one, "language": one}, outputs)


def stateful_interfaces(dims: ModelDimensions, kv_length: int, *, word_timestamps: bool) -> dict[str, PackageInterface]:
    """The interfaces of the functions of a stateful `TextDecoder`; today's open runtime does not read this form.

    Args:
        dims: The model's sizes.
        kv_length: Positions of the decoder's caches.
        word_timestamps: Whether the decoder gives out its alignment heads' weights.

    Raises:
        ValueError: `kv_length` is no length that a state can have.
    """
    states = {name: TensorInterface(shape) for name, shape in state_shapes(dims, kv_length).items()}
    contract = package_interfaces(dims, kv_length, word_timestamps=word_timestamps)["TextDecoder"]
    window = {"encoder_output_embeds": contract.inputs["encoder_output_embeds"]}
    first_key = {"first_audio_key": TensorInterface((1, 1, 1, 1))}
    token = {name: contract.inputs[name] for name in ("input_ids", "cache_length", "decoder_key_padding_mask")}
    outputs = {name: tensor for name, tensor in contract.outputs.items() if not name.endswith("_updates")}
    return {
        STEP_FUNCTION: PackageInterface(token, outputs, contract.optional, states),
        WINDOW_FUNCTION: PackageInterface(window, first_key, states=states),
    }


def package_problems(component: str, path: Path, interface: PackageInterface) -> list[str]:
    """Where a package on disk differs from what the runtime reads; see `interface_problems`."""
    return interface_problems(component, import_coremltools().utils.load_spec(str(path)), interface)


def stateful_problems(component: str, path: Path, interfaces: Mapping[str, PackageInterface]) -> list[str]:
    """Where the functions of a package on disk differ from their interfaces; one line for each difference."""
    spec = import_coremltools().utils.load_spec(str(path))
    found = {function.name: function for function in spec.description.functions}
    problems = [f"{component}: function {name} is missing" for name in interfaces if name not in found]
    for name in (name for name in interfaces if name in found):
        problems += function_problems(f"{component}, function {name}", found[name], interfaces[name])
    return problems


def interface_problems(component: str, spec: Any, interface: PackageInterface) -> list[str]:
    """Where a package's declared inputs and outputs differ from what the runtime reads.

    Args:
        component: The package's name, for the messages.
        spec: Its Core ML `Model` protobuf.
        interface: What is expected.

    Returns:
        One line for each difference; empty when the contract is kept.
    """
    return function_problems(component, spec.description, interface)


def function_problems(component: str, description: Any, interface: PackageInterface) -> list[str]:
    """Where a function's description differs from its interface; `description` is the protobuf of it or of a model."""
    problems: list[str] = []
    for kind, expected, declared in (
        ("input", interface.inputs, description.input),
        ("output", interface.outputs, description.output),
        ("state", interface.states, description.state),
    ):
        found = {feature.name: feature for feature in declared}
        missing = expected.keys() - found.keys() - interface.optional
        problems += [f"{component}: {kind} {name} is missing" for name in expected if name in missing]
        problems += [f"{component}: {kind} {name} is unknown to the runtime" for name in found if name not in expected]
        for name in (name for name in expected if name in found):
            problems += [f"{component}: {kind} {name} {line}" for line in _differences(found[name], expected[name])]
    return problems


def _differences(feature: Any, expected: TensorInterface) -> list[str]:
    kind = feature.type.WhichOneof("Type")
    if kind not in ("multiArrayType", "stateType"):
        return [f"is a {kind}, expected a multiArrayType"]
    array = feature.type.multiArrayType if kind == "multiArrayType" else feature.type.stateType.arrayType
    lines = []
    if tuple(array.shape) != expected.shape:
        lines.append(f"has declared shape {list(array.shape)}, expected {list(expected.shape)}")
    dtype = array.ArrayDataType.Name(array.dataType).lower()
    if dtype not in expected.accepted:
        lines.append(f"has type {dtype}, expected {' or '.join(expected.accepted)}")
    return lines
