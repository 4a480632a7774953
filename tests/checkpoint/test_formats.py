"""Checkpoints in the formats of other tools: each is recognised by looking, and gives the outputs of transformers."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.checkpoint_samples import assert_same_outputs, edit_json, save, small_model, write_tokenizer
from safetensors.torch import load_file, save_file

from tests.checkpoint.test_opening import OPENAI_DIMS, openai_state
from whisperkit_tools.checkpoint import open_checkpoint
from whisperkit_tools.errors import CheckpointError, OptionsError

STATE = {name: tensor.detach().clone() for name, tensor in small_model().model.state_dict().items()}


def loaded(state: dict[str, torch.Tensor]) -> Any:
    """The small model with other weights."""
    model = small_model()
    model.model.load_state_dict(state)
    return model


# CTranslate2


def ct2_variables(dtype: str) -> dict[str, np.ndarray]:
    """Name the weights as CTranslate2 does, written out independently of the product's rules."""
    found: dict[str, np.ndarray] = {"encoder/num_heads": np.int16(2), "decoder/num_heads": np.int16(2)}

    def put(name: str, *tensors: torch.Tensor) -> None:
        found[name] = torch.cat(tensors).numpy()

    def linear(name: str, stem: str, *parts: str) -> None:
        put(f"{name}/weight", *(STATE[f"{stem}{part}.weight"] for part in parts))
        width = STATE[f"{stem}{parts[0]}.weight"].shape[0]
        put(f"{name}/bias", *(STATE.get(f"{stem}{part}.bias", torch.zeros(width)) for part in parts))

    def norm(name: str, stem: str) -> None:
        put(f"{name}/gamma", STATE[f"{stem}.weight"])
        put(f"{name}/beta", STATE[f"{stem}.bias"])

    for conv in ("conv1", "conv2"):
        put(f"encoder/{conv}/weight", STATE[f"encoder.{conv}.weight"])
        put(f"encoder/{conv}/bias", STATE[f"encoder.{conv}.bias"])
    put("decoder/embeddings/weight", STATE["decoder.embed_tokens.weight"])
    for side in ("encoder", "decoder"):
        put(f"{side}/position_encodings/encodings", STATE[f"{side}.embed_positions.weight"])
        norm(f"{side}/layer_norm", f"{side}.layer_norm")
        for at in range(2):
            here, stem = f"{side}/layer_{at}", f"{side}.layers.{at}."
            norm(f"{here}/self_attention/layer_norm", f"{stem}self_attn_layer_norm")
            linear(f"{here}/self_attention/linear_0", f"{stem}self_attn.", "q_proj", "k_proj", "v_proj")
            linear(f"{here}/self_attention/linear_1", f"{stem}self_attn.", "out_proj")
            norm(f"{here}/ffn/layer_norm", f"{stem}final_layer_norm")
            linear(f"{here}/ffn/linear_0", stem, "fc1")
            linear(f"{here}/ffn/linear_1", stem, "fc2")
            if side == "decoder":
                norm(f"{here}/attention/layer_norm", f"{stem}encoder_attn_layer_norm")
                linear(f"{here}/attention/linear_0", f"{stem}encoder_attn.", "q_proj")
                linear(f"{here}/attention/linear_1", f"{stem}encoder_attn.", "k_proj", "v_proj")
                linear(f"{here}/attention/linear_2", f"{stem}encoder_attn.", "out_proj")
    return {name: typed for key, value in found.items() for name, typed in quantised(key, value, dtype).items()}


def quantised(name: str, value: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
    if np.asarray(value).dtype != np.float32:
        return {name: value}
    if dtype in ("int8", "int16") and name.endswith("/weight") and "conv" not in name:
        if dtype == "int8":
            scale = 127 / np.abs(value).max(axis=1)
            return {name: np.rint(value * scale[:, None]).astype(np.int8), f"{name}_scale": scale.astype(np.float32)}
        scale = np.float32(1000)
        return {name: np.rint(value * scale).astype(np.int16), f"{name}_scale": scale}
    return {name: value.astype(np.float16 if dtype == "float16" else np.float32)}


def write_ct2(folder: Path, dtype: str, version: int = 6) -> Path:
    folder.mkdir()
    types = [np.dtype(one) for one in (np.float32, np.int8, np.int16, np.int32, np.float16)]

    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    variables = ct2_variables(dtype)
    content = struct.pack("<I", version) + text("WhisperSpec") + struct.pack("<II", 3, len(variables))
    for name, value in variables.items():
        value = np.asarray(value)
        content += text(name) + struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape)
        content += struct.pack("<BI", types.index(value.dtype), value.nbytes) + value.tobytes()
    content += struct.pack("<I", 1) + text("decoder/projection/weight") + text("decoder/embeddings/weight")
    (folder / "model.bin").write_bytes(content)
    config = {"alignment_heads": [[1, 0]], "suppress_ids": [3], "suppress_ids_begin": [0, 10], "lang_ids": [12, 13]}
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    return folder


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "int16"])
def test_ctranslate2_folders(tmp_path: Path, dtype: str) -> None:
    checkpoint = open_checkpoint(str(write_ct2(tmp_path / "mine", dtype)))
    if dtype == "float32":
        assert_same_outputs(checkpoint, small_model())
    for name, expected in STATE.items():
        found = checkpoint.tensors[name].read().float()
        tolerance = {"float32": 0.0, "float16": 1e-3, "int8": 0.03, "int16": 0.0}[dtype] * float(expected.abs().max())
        half_a_step = 5.01e-4 if dtype == "int16" else 1e-9
        torch.testing.assert_close(found, expected, atol=tolerance + half_a_step, rtol=0)
    kinds = sorted({dtype, "float32"} if dtype.startswith("int") else {dtype})  # convolutions are not quantised
    assert checkpoint.format == f"CTranslate2 ({'+'.join(kinds)})"
    assert checkpoint.alignment_heads == ((1, 0),)
    assert checkpoint.generation_config["suppress_tokens"] == [3]
    assert any("made dense again" in note for note in checkpoint.notes) is dtype.startswith("int")
    assert json.loads(next(p for p in checkpoint.assets if p.name == "config.json").read_text())["d_model"] == 16


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: len(data) // 2], "is a damaged CTranslate2 model"),
        (lambda data: struct.pack("<I", 99) + data[4:], "has version 99 of CTranslate2's format, known are 4 to 6"),
    ],
)
def test_damaged_ctranslate2_files(tmp_path: Path, damage: Any, message: str) -> None:
    file = write_ct2(tmp_path / "mine", "float32") / "model.bin"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(str(tmp_path / "mine"))


# whisper.cpp


def write_ggml(file: Path, *, half: bool = False, blocks: Any = None) -> Path:
    dims = [OPENAI_DIMS[name] for name in (
        "n_vocab", "n_audio_ctx", "n_audio_state", "n_audio_head", "n_audio_layer", "n_text_ctx", "n_text_state",
        "n_text_head", "n_text_layer", "n_mels",
    )]  # fmt: skip
    content = b"lmgg" + struct.pack("<10i", *dims) + struct.pack("<i", int(half))
    content += struct.pack("<2i", 80, 201) + bytes(4 * 80 * 201) + struct.pack("<i", 2)
    content += struct.pack("<i", 1) + b"a" + struct.pack("<i", 3) + b"\xc4\x80b"
    for name, tensor in openai_state(small_model()).items():
        value = tensor.detach().numpy()
        value = value.reshape(-1, 1) if "conv" in name and name.endswith("bias") else value
        kind, data = 0, value.astype(np.float32).tobytes()
        if value.ndim > 1 and "positional" not in name and not name.endswith("bias"):
            if blocks is not None and value.shape[-1] % 32 == 0:
                kind, data = blocks(value)
            elif half:
                kind, data = 1, value.astype(np.float16).tobytes()
        content += struct.pack("<3i", value.ndim, len(name), kind) + struct.pack(f"<{value.ndim}i", *value.shape[::-1])
        content += name.encode() + data
    file.write_bytes(content)
    write_tokenizer(file.parent)
    return file


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", ["ggml-mine.bin", "other.name"])
def test_ggml_files(tmp_path: Path, half: bool, name: str) -> None:
    file = write_ggml(tmp_path / name, half=half)
    checkpoint = open_checkpoint(str(file))
    assert checkpoint.format == f"ggml ({'f16+f32' if half else 'f32'})"
    if not half:
        assert_same_outputs(checkpoint, small_model())
    for key, expected in STATE.items():
        torch.testing.assert_close(checkpoint.tensors[key].read().float(), expected, atol=2e-3, rtol=0)
    if name.endswith(".bin"):
        assert open_checkpoint(str(tmp_path)).dims == checkpoint.dims


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_quantised_ggml_files_are_what_ggmls_own_package_reads(tmp_path: Path, name: str) -> None:
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType[name]
    dense: dict[bytes, np.ndarray] = {}

    def blocks(value: np.ndarray) -> tuple[int, bytes]:
        data = gguf.quants.quantize(value.astype(np.float32), kind)
        dense[value.tobytes()] = gguf.quants.dequantize(data, kind)
        return int(kind), data.tobytes()

    checkpoint = open_checkpoint(str(write_ggml(tmp_path / "q.bin", blocks=blocks)))
    assert dense  # the feed-forward layers' second matrices
    compared = 0
    for key, original in STATE.items():
        if (expected := dense.get(original.numpy().tobytes())) is not None:
            np.testing.assert_allclose(checkpoint.tensors[key].read().numpy(), expected, atol=1e-6)
            compared += 1
    assert compared == len(dense)
    assert name.lower() in checkpoint.format
    assert any(f"quantised by ggml to {name.lower()}" in note for note in checkpoint.notes)


def test_quantised_ggml_blocks_by_hand(tmp_path: Path) -> None:
    """Every element is the scale times its number, so that something holds where ggml's package is absent."""

    def blocks(value: np.ndarray) -> tuple[int, bytes]:
        count = value.size // 32
        return 8, b"".join(struct.pack("<e32b", 0.5, *range(-16, 16)) for _ in range(count))

    checkpoint = open_checkpoint(str(write_ggml(tmp_path / "q.bin", blocks=blocks)))
    rows = checkpoint.tensors["encoder.layers.0.fc2.weight"].read()
    expected = torch.arange(-16, 16).float() * 0.5
    assert torch.equal(rows, expected.repeat(16, 2))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-50], "is a damaged ggml model"),
        (lambda data: data[:48] + struct.pack("<2i", 80, 201) + bytes(4 * 80 * 201) + bytes(4), "no weights"),
        (lambda data: data[:30], "is a damaged ggml model"),
    ],
)
def test_damaged_ggml_files(tmp_path: Path, damage: Any, message: str) -> None:
    file = write_ggml(tmp_path / "m.bin")
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(str(file))


# MLX


def write_mlx(folder: Path, file: str, *, positions: bool = True) -> Path:
    folder.mkdir()
    state = {}
    for name, tensor in openai_state(small_model()).items():
        if name == "encoder.positional_embedding" and not positions:
            continue
        name = name.replace(".mlp.0.", ".mlp1.").replace(".mlp.2.", ".mlp2.")
        is_conv = "conv" in name and tensor.ndim == 3
        state[name] = (tensor.transpose(1, 2) if is_conv else tensor).detach().contiguous()
    if file.endswith(".npz"):
        np.savez(folder / file, **{name: tensor.numpy() for name, tensor in state.items()})
    else:
        save_file(state, folder / file)
    (folder / "config.json").write_text(json.dumps({**OPENAI_DIMS, "model_type": "whisper"}))
    write_tokenizer(folder)
    return folder


@pytest.mark.parametrize("file", ["weights.safetensors", "weights.npz", "model.safetensors"])
def test_mlx_folders(tmp_path: Path, file: str) -> None:
    checkpoint = open_checkpoint(str(write_mlx(tmp_path / "mlx", file)))
    assert checkpoint.format == "MLX"
    assert_same_outputs(checkpoint, small_model())


def test_positions_that_mlx_does_not_store_are_openais(tmp_path: Path) -> None:
    from transformers.models.whisper.modeling_whisper import sinusoids

    checkpoint = open_checkpoint(str(write_mlx(tmp_path / "mlx", "weights.npz", positions=False)))
    found = checkpoint.tensors["encoder.embed_positions.weight"].read()
    torch.testing.assert_close(found, sinusoids(1500, 16), atol=1e-6, rtol=0)
    assert any("position embeddings" in note for note in checkpoint.notes)


def test_quantised_mlx_folders_are_refused_by_name(tmp_path: Path) -> None:
    folder = write_mlx(tmp_path / "mlx", "weights.safetensors")
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "quantization": {"bits": 4, "group_size": 64}}))
    with pytest.raises(CheckpointError, match=r"is an MLX conversion, quantised with 4 bits.*give the checkpoint"):
        open_checkpoint(str(folder))


# LiteASR


def test_low_rank_encoders_become_dense(tmp_path: Path) -> None:
    folder = save(small_model(), tmp_path / "lite")
    state = load_file(folder / "model.safetensors")
    dense = dict(STATE)
    generator = torch.Generator().manual_seed(1)
    for part in ("self_attn.q_proj", "self_attn.k_proj", "fc1"):
        stem = f"encoder.layers.0.{part}"
        rows, columns = dense[f"{stem}.weight"].shape
        first, second = torch.randn(columns, 4, generator=generator), torch.randn(4, rows, generator=generator)
        del state[f"model.{stem}.weight"]
        state |= {f"model.{stem}.weight1": first, f"model.{stem}.weight2": second}
        state[f"model.{stem}.bias"] = torch.randn(rows, generator=generator)
        dense[f"{stem}.weight"] = (first @ second).T
        if "k_proj" not in part:
            dense[f"{stem}.bias"] = state[f"model.{stem}.bias"]
    save_file(state, folder / "model.safetensors")
    edit_json(folder / "config.json", model_type="lite-whisper", low_rank_config=[{"q_proj": 4}, {}])
    checkpoint = open_checkpoint(str(folder))
    assert checkpoint.format == "LiteASR"
    assert "low_rank_config" not in checkpoint.config
    assert_same_outputs(checkpoint, loaded(dense))
    del state["model.encoder.layers.0.fc1.weight2"]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"layers.0.fc1: weight1 .* has no weight2"):
        open_checkpoint(str(folder))


# Tokenizers and bases


def without_tokenizer(folder: Path) -> Path:
    (save(small_model(), folder) / "tokenizer.json").unlink()
    return folder


def test_a_tokenizer_from_elsewhere(tmp_path: Path) -> None:
    folder, other = without_tokenizer(tmp_path / "trained"), save(small_model(), tmp_path / "base")
    with pytest.raises(CheckpointError, match=r"no tokenizer in .*tokenizer=FOLDER_OR_ID"):
        open_checkpoint(str(folder))
    checkpoint = open_checkpoint(str(folder), tokenizer=str(other))
    assert next(path for path in checkpoint.assets if path.name == "tokenizer.json").parent == other
    edit_json(folder / "config.json", _name_or_path=str(other))
    named = open_checkpoint(str(folder))
    assert next(path for path in named.assets if path.name == "tokenizer.json").parent == other
    edit_json(folder / "config.json", _name_or_path=str(tmp_path / "gone"))
    with pytest.raises(CheckpointError, match=r"its config names '.*gone' as its origin: .*tokenizer=FOLDER_OR_ID"):
        open_checkpoint(str(folder))


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    folder, other = without_tokenizer(tmp_path / "trained"), save(small_model(), tmp_path / "base")
    content = json.loads((other / "tokenizer.json").read_text())
    for token in content["added_tokens"]:
        token["id"] += 1
    (other / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"is 12, but the checkpoint starts answers with 11"):
        open_checkpoint(str(folder), tokenizer=str(other))
    (other / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer '.*base': .* has neither tokenizer.json nor vocab.json"):
        open_checkpoint(str(folder), tokenizer=str(other))


def test_the_base_of_an_adapter_can_be_given(tmp_path: Path) -> None:
    base = save(small_model(), tmp_path / "base")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    stem = "base_model.model.model.decoder.layers.0.self_attn.q_proj"
    save_file(
        {f"{stem}.lora_A.weight": torch.ones(2, 16), f"{stem}.lora_B.weight": torch.zeros(16, 2)},
        adapter / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "base_model_name_or_path": "/mnt/gone", "r": 2, "lora_alpha": 2}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"base '/mnt/gone' of the adapter .*name another one with base="):
        open_checkpoint(str(adapter))
    checkpoint = open_checkpoint(str(adapter), base=str(base))
    assert checkpoint.format == "LoRA on Hugging Face"
    assert_same_outputs(checkpoint, small_model())
    wide = save(small_model(d_model=32, encoder_ffn_dim=128, decoder_ffn_dim=128), tmp_path / "wide")
    with pytest.raises(CheckpointError, match="does not fit its base"):
        open_checkpoint(str(adapter), base=str(wide))
    with pytest.raises(OptionsError, match="is not an adapter; omit it"):
        open_checkpoint(str(base), base=str(base))


# Features


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling_rate": 8000, "n_fft": 200, "hop_length": 80}, "sampling_rate is 8000, not 16000; n_fft is 200"),
        ({"do_normalize": True}, "do_normalize is True, not False"),
        ({"feature_extractor_type": "SpeechT5FeatureExtractor"}, "feature_extractor_type is 'SpeechT5"),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_other_features_than_whispers_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str, nested: bool
) -> None:
    folder = save(small_model(), tmp_path / "m")
    name = "processor_config.json" if nested else "preprocessor_config.json"
    content = {"sampling_rate": 16000, "n_fft": 400, "hop_length": 160, **changes}
    (folder / name).write_text(json.dumps({"feature_extractor": content} if nested else content))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(str(folder))


def test_sizes_that_contradict_the_weights_are_corrected(tmp_path: Path) -> None:
    folder = save(small_model(max_source_positions=750), tmp_path / "m")
    given = {"feature_size": 128, "chunk_length": 30, "n_samples": 480000, "nb_max_frames": 3000, "n_fft": 400}
    (folder / "preprocessor_config.json").write_text(json.dumps(given))
    checkpoint = open_checkpoint(str(folder))
    shipped = json.loads(next(p for p in checkpoint.assets if p.name == "preprocessor_config.json").read_text())
    assert shipped == {**given, "feature_size": 80, "chunk_length": 15, "n_samples": 240000, "nb_max_frames": 1500}
    assert any("contradicts the weights and is corrected" in note for note in checkpoint.notes)


# What cannot be converted


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.gguf", "is a GGUF model; give the checkpoint"),
        ("encoder_model.onnx", "is an ONNX export"),
        ("openvino_encoder_model.xml", "is an OpenVINO model"),
        ("flax_model.msgpack", "holds Flax weights"),
        ("tf_model.h5", "holds TensorFlow weights"),
        ("whisper.nemo", "is a NeMo model"),
    ],
)
def test_other_formats_say_what_to_give_instead(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).write_bytes(b"GGUF" if name.endswith("gguf") else b"x")
    for source in (tmp_path, tmp_path / name):
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(str(source))
