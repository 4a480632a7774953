"""The runtime contract: names, shapes and types of all components, inputs, outputs, states and functions.

No other module spells these names out.

Source: argmaxinc/argmax-oss-swift, read at v0.18 to v1.1.0. The runtime takes its dimensions from the declared shapes
of `logits`, `key_cache`, `encoder_output_embeds` and `melspectrogram_features`, and copies the caches as raw float16.
"""

from dataclasses import dataclass, field
from typing import Literal

from whisperkit_tools.dimensions import ModelDimensions

# Components, each an `.mlpackage` of a bundle, in the order of the data's way.
MEL = "MelSpectrogram"
ENCODER = "AudioEncoder"
DECODER = "TextDecoder"
PREFILL = "TextDecoderContextPrefill"
VERIFIER = "TextDecoderVerify"
COMPONENTS = (MEL, ENCODER, DECODER)
OPTIONAL_COMPONENTS = (PREFILL, VERIFIER)
MODEL_COMPONENTS = (ENCODER, DECODER)  # those that hold the model's weights: compressed, and counted as its size

# MelSpectrogram and AudioEncoder.
AUDIO = "audio"
FEATURES = "melspectrogram_features"
EMBEDS = "encoder_output_embeds"

# TextDecoder.
INPUT_IDS = "input_ids"
CACHE_LENGTH = "cache_length"
KEY_CACHE = "key_cache"
VALUE_CACHE = "value_cache"
UPDATE_MASK = "kv_cache_update_mask"
PADDING_MASK = "decoder_key_padding_mask"
LOGITS = "logits"
KEY_UPDATES = "key_cache_updates"
VALUE_UPDATES = "value_cache_updates"
ALIGNMENT = "alignment_heads_weights"

# TextDecoder with its caches as states: two functions on one state. Today's open runtime does not load this form.
STEP_FUNCTION = "main"
WINDOW_FUNCTION = "project_audio"
TEXT_STATES = (KEY_CACHE, VALUE_CACHE)
AUDIO_STATES = ("audio_key_cache", "audio_value_cache")
FIRST_AUDIO_KEY = "first_audio_key"
# With other lengths, stateful models fail on the Neural Engine. Source: apple/coremltools#2631.
STATE_ALIGNMENT = 32

# TextDecoderContextPrefill.
TASK = "task"
LANGUAGE = "language"
KEY_PREFILL = "key_cache_prefill"
VALUE_PREFILL = "value_cache_prefill"

# TextDecoderVerify: the decoder on this many tokens at once, unless the conversion is told otherwise. Today's open
# runtime does not load it.
VERIFIED_TOKENS = 5

MASKED = -10000.0  # the runtime's own value: finite in float16, and zero after the softmax

# Deployment targets as users know them: coremltools' name, and the oldest systems that load the result. A macOS name
# means the same opset as the iOS name of its year.
DEPLOYMENT_TARGETS = {
    "ios16": "iOS16",
    "ios17": "iOS17",
    "ios18": "iOS18",
    "macos13": "macOS13",
    "macos14": "macOS14",
    "macos15": "macOS15",
}
STATEFUL_TARGETS = ("ios18", "macos15")

# Attention implementations, see `compile_hints.attention`. Those of the second line work in chunks.
PLAIN_ATTENTIONS = ("cat", "split-heads")
CHUNKED_ATTENTIONS = ("split-heads-q", "split-kv")
ATTENTION_NAMES = PLAIN_ATTENTIONS + CHUNKED_ATTENTIONS

DType = Literal["float16", "float32", "int32"]


def aligned(positions: int) -> int:
    """Return the length of a state that holds `positions`."""
    return -(-positions // STATE_ALIGNMENT) * STATE_ALIGNMENT


def state_shapes(dims: ModelDimensions, kv_length: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of each state by name; all layers' lie along the channels.

    Raises:
        ValueError: `kv_length` is no multiple of `STATE_ALIGNMENT`.
    """
    if kv_length % STATE_ALIGNMENT:
        raise ValueError(
            f"kv_length is {kv_length}; as states, caches need a multiple of {STATE_ALIGNMENT}, "
            "or they do not run on the Neural Engine (apple/coremltools#2631)"
        )
    channels = dims.d_model * dims.decoder_layers
    return {
        **dict.fromkeys(TEXT_STATES, (1, channels, 1, kv_length)),
        **dict.fromkeys(AUDIO_STATES, (1, channels, 1, aligned(dims.n_audio_ctx))),
    }


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
    """Inputs, outputs and states of a function by name, in order. `optional` outputs may be missing."""

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
    features = {FEATURES: TensorInterface((1, dims.n_mels, 1, dims.n_frames))}
    embeds = {EMBEDS: TensorInterface((1, dims.d_model, 1, dims.n_audio_ctx))}
    # Float32 comes first for audio: rounded to float16, its noise floor rises above the 80 dB that Whisper looks at.
    audio = {AUDIO: TensorInterface((dims.n_samples,), "float32", ("float32", "float16"))}
    return {
        MEL: PackageInterface(audio, features),
        ENCODER: PackageInterface(features, embeds),
        DECODER: _decoder_interface(dims, kv_length, embeds, word_timestamps),
    }


def _decoder_interface(
    dims: ModelDimensions, kv_length: int, embeds: dict[str, TensorInterface], word_timestamps: bool
) -> PackageInterface:
    token = TensorInterface((1,), "int32", ("int32",))
    channels = dims.d_model * dims.decoder_layers
    cache, update = TensorInterface((1, channels, 1, kv_length)), TensorInterface((1, channels, 1, 1))
    mask = TensorInterface((1, kv_length))
    inputs = {
        INPUT_IDS: token,
        CACHE_LENGTH: token,
        KEY_CACHE: cache,
        VALUE_CACHE: cache,
        UPDATE_MASK: mask,
        **embeds,
        PADDING_MASK: mask,
    }
    outputs = {
        LOGITS: TensorInterface((1, 1, dims.vocab_size)),
        KEY_UPDATES: update,
        VALUE_UPDATES: update,
    }
    if word_timestamps:
        outputs[ALIGNMENT] = TensorInterface((1, dims.n_audio_ctx))
    return PackageInterface(inputs, outputs, frozenset({ALIGNMENT}))


def prefill_interface(dims: ModelDimensions, forced: int) -> PackageInterface:
    """The interface of the table of caches after the forced tokens.

    Args:
        dims: The model's sizes.
        forced: How many tokens every answer starts with.
    """
    one = TensorInterface((1,), "int32", ("int32",))
    cache = TensorInterface((1, dims.d_model * dims.decoder_layers, 1, forced))
    outputs = {KEY_PREFILL: cache, VALUE_PREFILL: cache}
    return PackageInterface({TASK: one, LANGUAGE: one}, outputs)


def verifier_interface(
    dims: ModelDimensions, kv_length: int, tokens: int, *, word_timestamps: bool
) -> PackageInterface:
    """The interface of the decoder on several tokens at once.

    The inputs are those of `TextDecoder` with a row for each token: the token, its position, and both masks. The
    outputs have a row for each token, and the updates of the caches a column.

    Args:
        dims: The model's sizes.
        kv_length: Positions of the decoder's caches.
        tokens: Number of tokens.
        word_timestamps: Whether the decoder gives out its alignment heads' weights.
    """
    one = package_interfaces(dims, kv_length, word_timestamps=word_timestamps)[DECODER]
    rows = {INPUT_IDS, CACHE_LENGTH, UPDATE_MASK, PADDING_MASK, ALIGNMENT}
    inputs = {name: _with_rows(it, tokens) if name in rows else it for name, it in one.inputs.items()}
    channels = dims.d_model * dims.decoder_layers
    update = TensorInterface((1, channels, 1, tokens))
    outputs = {LOGITS: TensorInterface((1, tokens, dims.vocab_size)), KEY_UPDATES: update, VALUE_UPDATES: update}
    if word_timestamps:
        outputs[ALIGNMENT] = _with_rows(one.outputs[ALIGNMENT], tokens)
    return PackageInterface(inputs, outputs, one.optional)


def _with_rows(tensor: TensorInterface, rows: int) -> TensorInterface:
    return TensorInterface((rows, *tensor.shape[1:]), tensor.dtype, tensor.accepted)


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
    contract = package_interfaces(dims, kv_length, word_timestamps=word_timestamps)[DECODER]
    window = {EMBEDS: contract.inputs[EMBEDS]}
    first_key = {FIRST_AUDIO_KEY: TensorInterface((1, 1, 1, 1))}
    token = {name: contract.inputs[name] for name in (INPUT_IDS, CACHE_LENGTH, PADDING_MASK)}
    outputs = {name: tensor for name, tensor in contract.outputs.items() if name not in (KEY_UPDATES, VALUE_UPDATES)}
    return {
        STEP_FUNCTION: PackageInterface(token, outputs, contract.optional, states),
        WINDOW_FUNCTION: PackageInterface(window, first_key, states=states),
    }
