"""The modules of a conversion: as stored for the package, and in the form of the reference."""

import numpy as np
import torch

from whisperkit_tools import contract
from whisperkit_tools.checkpoint import open_checkpoint
from whisperkit_tools.compile_hints.attention import Cat, MultiHeadAttention, SplitHeadsQ
from whisperkit_tools.conversion.attention_layout import Layout
from whisperkit_tools.conversion.components import Components, to_reference_form


def attentions(module):
    return {type(part.implementation) for part in module.modules() if isinstance(part, MultiHeadAttention)}


def test_the_reference_form_is_plain_and_float32_and_loading_is_as_laid_out():
    layout = Layout(audio_encoder="split-heads-q")
    components = Components(open_checkpoint("demo"), 448, None, np.zeros(16000, np.float32), layout)
    module = components.load(contract.ENCODER)
    assert attentions(module) == {SplitHeadsQ}
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float16}
    reference = to_reference_form(module)
    assert reference is module  # in place, so that no second copy of the weights is held
    assert attentions(module) == {Cat}
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    assert attentions(components.load(contract.ENCODER)) == {SplitHeadsQ}


def test_a_layout_knows_what_was_given_and_what_is_used():
    assert (Layout("split-heads-q").given_chunk_size, Layout("split-heads-q").chunk_size) == (None, 512)
    assert Layout("split-heads-q", given_chunk_size=64).chunk_size == 64
    assert Layout("cat").chunk_size is None
