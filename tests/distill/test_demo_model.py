"""The factory of the demo model: its entry, and a training state that is written as a whole."""

import subprocess
import sys

import pytest

from whisperkit_tools.distill.demo_model.train import Trainer


@pytest.mark.parametrize("entry", ["demo_model", "demo_model.make_demo"])
def test_the_factory_is_a_command(entry):
    command = [sys.executable, "-m", f"whisperkit_tools.distill.{entry}", "--help"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "{train,audio,export,evaluate,all}" in printed


def test_an_interrupted_save_keeps_the_old_state(tmp_path, monkeypatch):
    trainer = Trainer.__new__(Trainer)  # a whole one needs a pool of speech
    trainer.rank, trainer.state_path, trainer.stage_index, trainer.step = 0, tmp_path / "state.pt", 0, 0
    trainer.model = trainer.optimizer = type("Stateful", (), {"state_dict": lambda self: {}})()
    trainer.save()
    before = trainer.state_path.read_bytes()

    def full(state, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("whisperkit_tools.distill.demo_model.train.torch.save", full)
    with pytest.raises(OSError, match="No space"):
        trainer.save()
    assert trainer.state_path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]
