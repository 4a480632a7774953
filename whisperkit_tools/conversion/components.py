"""A checkpoint's components, one after another: their modules, and the inputs on which they are compared."""

import numpy as np
import torch

from whisperkit_tools import contract
from whisperkit_tools.checkpoint import Checkpoint
from whisperkit_tools.compile_hints.attention import Cat, MultiHeadAttention
from whisperkit_tools.compile_hints.mel_spectrogram import MelSpectrogram
from whisperkit_tools.compile_hints.text_decoder import AlignmentHeads
from whisperkit_tools.contract import PackageInterface, package_interfaces
from whisperkit_tools.conversion.attention_layout import Layout
from whisperkit_tools.conversion.column_scales import fold_column_scales
from whisperkit_tools.conversion.export import fold_query_scale
from whisperkit_tools.conversion.parity import Arrays, Reference, as_float16
from whisperkit_tools.speech import WINDOW_SAMPLES, Samples

COMPUTED_IN_FLOAT32 = (contract.MEL,)


class Components:
    """The modules of the components, each loaded when it is needed, so that only one is in memory at a time."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        kv_length: int,
        heads: AlignmentHeads | None,
        audio: Samples,
        layout: Layout | None = None,
    ) -> None:
        """Prepare.

        Args:
            checkpoint: The opened checkpoint.
            kv_length: Positions of the decoder's caches.
            heads: The alignment heads that the decoder gives out, or None.
            audio: Speech at 16 kHz, cut or filled with silence to one window.
            layout: Layout of the packages, plain unless given.
        """
        self.checkpoint = checkpoint
        self.kv_length = kv_length
        self.heads = heads
        self.layout = layout or Layout()
        self.interfaces: dict[str, PackageInterface] = package_interfaces(
            checkpoint.dims, kv_length, word_timestamps=heads is not None
        )
        start = np.array([checkpoint.generation_config["decoder_start_token_id"]], np.int32)
        self._known: Arrays = {contract.AUDIO: one_window(audio, checkpoint.dims.n_samples), contract.INPUT_IDS: start}

    def load(self, name: str) -> torch.nn.Module:
        """Return the component's module, with the weights in float16 as they are stored in the package."""
        if name == contract.MEL:
            return MelSpectrogram(self.checkpoint.dims.n_mels)
        module: torch.nn.Module
        if name == contract.ENCODER:
            module = self.checkpoint.load_encoder(torch.float16, self.layout.implementation(name))
        else:
            module = decoder = self.checkpoint.load_decoder(
                self.kv_length,
                self.heads,
                torch.float16,
                self.layout.implementation(name),
                self.layout.logits_chunk_size,
            )
            fold_column_scales(decoder)
        fold_query_scale(module)
        return module

    @property
    def embeds(self) -> torch.Tensor:
        """The audio embeddings of the speech, once the encoder's reference was computed."""
        return torch.from_numpy(self._known[contract.EMBEDS])

    def reference(self, name: str, module: torch.nn.Module) -> Reference:
        """Compute a component on the speech. Its outputs become the next component's inputs.

        The outputs are rounded to float16 on the way, as the runtime hands them on.

        Args:
            name: The component.
            module: Its module in float32, see `to_reference_form`.
        """
        interface = self.interfaces[name]
        example = {key: self._known[key] for key in interface.inputs if key in self._known}
        reference = Reference(name, module, interface, example)
        self._known |= {key: as_float16(array) for key, array in reference.outputs[0].items()}
        return reference


def to_reference_form(module: torch.nn.Module) -> torch.nn.Module:
    """Change a module in place to float32 and to the plain attention, and return it.

    The reference has the plain attention whatever the layout of the package is, so that the layout is compared too.
    A copy would hold the weights twice.
    """
    for part in module.modules():
        if isinstance(part, MultiHeadAttention):
            part.implementation = Cat()
    return module.float()


def one_window(audio: Samples, n_samples: int = WINDOW_SAMPLES) -> Samples:
    """Cut audio, or fill it with silence, to the samples of a window: 30 s unless given."""
    window = np.zeros(n_samples, np.float32)
    window[: min(audio.size, n_samples)] = audio[:n_samples]
    return window
