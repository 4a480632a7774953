"""Packages together: sizes from their shapes, other parts in place of one, and the form of the session."""

from dataclasses import FrozenInstanceError, replace

import pytest

from whisperkit_tools.bundle import Bundle
from whisperkit_tools.contract import KEY_CACHE, KEY_UPDATES
from whisperkit_tools.decoder.adapters import FunctionModel
from whisperkit_tools.decoder.loading import load_models
from whisperkit_tools.decoder.models import ModelSizes
from whisperkit_tools.decoder.session import CacheSession
from whisperkit_tools.decoder.stateful import StatefulSession
from whisperkit_tools.errors import BundleError, OptionsError
from whisperkit_tools.mil.tensor_spec import TensorSpec


@pytest.fixture(scope="module")
def models(prefill_bundle):
    return load_models(Bundle.open(prefill_bundle))


def with_declared(model, inputs=(), outputs=()):
    """The same model with other inputs and outputs."""
    return FunctionModel(model.run, {**model.inputs, **dict(inputs)}, {**model.outputs, **dict(outputs)})


def test_sizes_are_those_of_the_shapes(models):
    channels = models.decoder.inputs[KEY_CACHE].shape[1]
    assert models.sizes == ModelSizes(480_000, 80, 3000, 1500, 2248, 448, True, channels)
    assert (models.sizes.hop_length, models.sizes.frames_per_position) == (160, 2)


def test_other_parts_make_other_models(models):
    without = replace(models, prefill=None)
    assert models.prefill_lookup.length == 3
    assert without.prefill_lookup is None
    assert without.decoder is models.decoder
    with pytest.raises(FrozenInstanceError):
        models.prefill = None


def test_parts_that_do_not_fit_are_refused_at_once(models):
    decoder = models.decoder
    lacking = FunctionModel(decoder.run, decoder.inputs, {k: v for k, v in decoder.outputs.items() if k != KEY_UPDATES})
    with pytest.raises(BundleError, match="lack TextDecoder output key_cache_updates"):
        replace(models, decoder=lacking)
    open_axis = with_declared(decoder, inputs=[(KEY_CACHE, TensorSpec(KEY_CACHE, (1, 512, 1, None), "float16"))])
    with pytest.raises(BundleError, match="no fixed size at axis 3"):
        replace(models, decoder=open_axis)
    narrow = with_declared(
        models.prefill,
        outputs=[(name, TensorSpec(name, (1, 8, 1, 3), "float16")) for name in models.prefill.outputs],
    )
    with pytest.raises(BundleError, match="does not belong to this TextDecoder"):
        replace(models, prefill=narrow)


def test_sessions_have_the_decoders_form_and_caches_of_their_own(models, stateful_bundle):
    first, second = models.new_session(), models.new_session()
    assert isinstance(first, CacheSession)
    assert first is not second
    assert first.length == 448
    stateful = load_models(Bundle.open(stateful_bundle))
    assert isinstance(stateful.new_session(), StatefulSession)
    assert stateful.sizes == replace(models.sizes, kv_length=stateful.sizes.kv_length)


def test_a_backend_that_does_not_exist(prefill_bundle):
    with pytest.raises(OptionsError, match="backend is 'onnx'; choose from torch, coreml"):
        load_models(Bundle.open(prefill_bundle), backend="onnx")
