"""`wkt convert`, `info`, `verify` and `demo` as a user meets them: output, exit codes, what they leave behind."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from whisperkit_tools.demo import demo_checkpoint_dir

WKT = [sys.executable, "-m", "whisperkit_tools"]


@pytest.fixture
def checkpoint(tmp_path):
    """A copy of the demo checkpoint that a test may damage."""
    return Path(shutil.copytree(demo_checkpoint_dir(), tmp_path / "my-finetune"))


def error_line(err: str) -> str:
    lines = [line for line in err.splitlines() if line.startswith("wkt: error: ")]
    assert len(lines) == 1
    return lines[0]


def test_convert_prints_sizes_parity_and_where_it_is(wkt, tmp_path):
    code, out, err = wkt("convert", "demo", "-o", tmp_path)
    assert code == 0
    path = Path(out.splitlines()[-1])
    assert path.parent == tmp_path
    assert (path / "wkt.json").is_file()
    for name in ("MelSpectrogram", "AudioEncoder", "TextDecoder"):
        assert any(line.startswith(name) and "MB" in line and "dB" in line for line in out.splitlines())
        assert all(f"{name:<15} {stage}" in err for stage in ("load", "export", "verify: PyTorch", "verify: package"))
    assert "coremltools" not in err
    assert "Torch version" not in err

    before = (path / "wkt.json").read_bytes()
    code, out, err = wkt("convert", "demo", "-o", tmp_path)
    assert (code, out) == (1, "")
    assert "already exists; replace it with --force" in error_line(err)
    assert (path / "wkt.json").read_bytes() == before


def without_alignment_heads(checkpoint: Path) -> Path:
    generation = json.loads((checkpoint / "generation_config.json").read_text())
    del generation["alignment_heads"]
    (checkpoint / "generation_config.json").write_text(json.dumps(generation))
    return checkpoint


def test_without_named_alignment_heads_they_are_chosen_on_speech_and_shipped(wkt, shared, tmp_path):
    checkpoint = without_alignment_heads(
        Path(shutil.copytree(shared / "checkpoints" / "whisper-micro", tmp_path / "m"))
    )
    code, out, err = wkt("convert", checkpoint, "-o", tmp_path / "out", "--json")
    assert code == 0
    result = json.loads(out)
    assert "note: the checkpoint names no alignment heads; " in err
    bundle = Path(result["path"])
    heads = json.loads((bundle / "wkt.json").read_text())["conversion"]["alignment_heads"]
    assert heads
    assert json.loads((bundle / "generation_config.json").read_text())["alignment_heads"] == heads
    assert "alignment_heads_weights" in {name for item in result["parity"] for name in item["float32_db"]}


def test_where_no_head_follows_the_speech_the_output_is_left_away_and_said(wkt, checkpoint, tmp_path):
    """A model whose text decoder knows nothing: its cross-attention looks at random places."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(checkpoint / "model.safetensors")
    for name in tensors:
        if "encoder_attn.q_proj" in name or "encoder_attn.k_proj" in name:
            tensors[name] = tensors[name] * 0  # equal scores everywhere
    save_file(tensors, checkpoint / "model.safetensors")
    code, out, err = wkt(
        "convert", without_alignment_heads(checkpoint), "-o", tmp_path / "out", "--json", "--no-verify"
    )
    assert code == 0
    assert "note: the checkpoint names no alignment heads; no alignment heads chosen" in err
    manifest = json.loads((Path(json.loads(out)["path"]) / "wkt.json").read_text())
    assert manifest["conversion"]["alignment_heads"] == []
    assert manifest["conversion"]["word_timestamps"] is False


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("truncate", "model.safetensors"),
        ("not whisper", "is not a Whisper: its model_type is 'llama'"),
        ("no fields", "lacks"),
        ("empty", "my-finetune"),
    ],
)
def test_damaged_checkpoints_are_one_line(wkt, checkpoint, tmp_path, damage, message):
    config = json.loads((checkpoint / "config.json").read_text())
    if damage == "truncate":
        weights = checkpoint / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif damage == "not whisper":
        (checkpoint / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    elif damage == "no fields":
        (checkpoint / "config.json").write_text(json.dumps({"model_type": "whisper"}))
    else:
        for file in checkpoint.iterdir():
            file.unlink()
    code, out, err = wkt("convert", checkpoint, "-o", tmp_path / "out")
    assert (code, out) == (1, "")
    assert message in error_line(err)
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_an_unknown_alias_suggests_the_nearest(wkt, tmp_path):
    code, _, err = wkt("convert", "large-v33", "-o", tmp_path / "out")
    assert code == 2
    assert "did you mean large-v3" in error_line(err)


def test_usage_errors_are_exit_2(wkt):
    for arguments in (
        ["convert"],
        ["convert", "demo", "--deployment-target", "ios9"],
        ["convert", "demo", "--kv-length", "x"],
    ):
        assert wkt(*arguments)[0] == 2


def test_a_disk_that_fills_half_way_leaves_nothing(wkt, tmp_path, monkeypatch):
    """Injected where the tokenizer is copied, after all packages were written."""

    def full(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    monkeypatch.setattr("whisperkit_tools.conversion.convert.shutil.copyfile", full)
    code, _, err = wkt("convert", "demo", "-o", tmp_path / "out", "--no-verify")
    assert code == 1
    assert "the disk is full" in error_line(err)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("delay_s", [0.2, 0.5, 3.0, 6.0])
def test_ctrl_c_leaves_nothing_and_no_traceback(tmp_path, delay_s):
    target = tmp_path / "out"
    with subprocess.Popen([*WKT, "convert", "demo", "-o", str(target)], stderr=subprocess.PIPE, text=True) as process:
        time.sleep(delay_s)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    if process.returncode != 0:  # a fast machine may have finished
        assert process.returncode in (130, -signal.SIGINT)  # the same to a shell
        assert "Traceback" not in err
        assert "interrupted" in err
        assert not target.exists() or list(target.iterdir()) == []


def test_info_is_readable_and_machine_readable(wkt, demo_bundle):
    code, out, _ = wkt("info", demo_bundle)
    assert code == 0
    for text in ("AudioEncoder", "key_cache_updates", "operations:", "parity  float32:", "source       demo"):
        assert text in out
    facts = json.loads(wkt("info", demo_bundle, "--json")[1])
    assert facts["components"]["AudioEncoder"]["outputs"]["encoder_output_embeds"].startswith("float16[1, ")


def test_verify_passes_and_closes(wkt, demo_bundle, tmp_path):
    code, out, _ = wkt("verify", demo_bundle)
    assert (code, out) == (0, "files     ok\ncontract  ok\nparity    ok\n")
    bundle = Path(shutil.copytree(demo_bundle, tmp_path / demo_bundle.name))
    weights = bundle / "TextDecoder.mlpackage" / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(bytes(data))
    code, out, err = wkt("verify", bundle)
    assert code == 3
    assert "weight.bin: sha256" in error_line(err)
    shutil.rmtree(bundle / "AudioEncoder.mlpackage")
    code, _, err = wkt("verify", bundle)
    assert code == 1
    assert "missing AudioEncoder.mlpackage" in error_line(err)


def test_verify_says_when_it_cannot_compare(wkt, checkpoint, tmp_path):
    bundle = wkt("convert", checkpoint, "-o", tmp_path / "out", "--no-verify")[1].splitlines()[-1]
    moved = checkpoint.rename(tmp_path / "elsewhere")
    code, out, _ = wkt("verify", bundle)
    assert code == 0
    assert "parity    not checked: its source cannot be opened" in out
    code, out, _ = wkt("verify", bundle, "--source", moved)
    assert (code, out.splitlines()[-1]) == (0, "parity    ok")


def test_verify_refuses_another_model_as_the_source(wkt, demo_bundle, checkpoint):
    weights = checkpoint / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    code, _, err = wkt("verify", demo_bundle, "--source", checkpoint)
    assert code == 1
    assert "holds other weights than demo" in error_line(err)


def test_demo_goes_the_whole_way(wkt, tmp_path):
    code, out, err = wkt("demo", "-o", tmp_path, "--limit", "1", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert [line.split("]")[0] for line in err.splitlines() if line.startswith("[")] == [f"[{n}/5" for n in range(1, 6)]
    sizes = {row["variant"]: row["size_bytes"] for row in found["variants"]}
    names = list(sizes)
    assert len(names) == 3
    assert all("_turbo" in name for name in names)
    assert sizes[names[2]] < sizes[names[1]] < sizes[names[0]]
    assert all(row["wer"] <= 0.2 for row in found["variants"])
    assert [row["qoi"] is None for row in found["variants"]] == [True, False, False]

    published, pulled = Path(found["published"]), Path(found["pulled"])
    assert {path.name for path in published.iterdir() if path.is_dir()} >= set(names)
    card = (published / "README.md").read_text()
    assert all(f"| `{name}` |" in card for name in names)
    assert "size-quality.svg" in card
    assert pulled.name == names[2]
    for path in pulled.rglob("*"):
        assert path.is_dir() or path.read_bytes() == (published / names[2] / path.relative_to(pulled)).read_bytes()
    assert all(name in Path(found["report"]).read_text() for name in names)

    rates = found["wer"]
    assert rates["transcribe en"] < 0.2
    # Its figures.json: 0.15 in English and 0.04 in Spanish with whole-file features; a model that is lost has 1.0.
    assert max(rates["long-form en"], rates["long-form es"]) < 0.3
    tasks = [line["task"] for line in found["lines"]]
    assert tasks == ["transcribe en", "transcribe es", "translate es", "long-form en", "long-form es"]

    code, _, err = wkt("demo", "-o", tmp_path, "--limit", "1")
    assert code == 1
    assert "already exists; replace it with --force" in error_line(err)
