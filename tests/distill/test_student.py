"""Students: the layers that they take, and a checkpoint folder that transformers loads."""

import json

import pytest
import torch
from helpers.checkpoint_samples import edit_json, save, small_model
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from whisperkit_tools.checkpoint import open_checkpoint
from whisperkit_tools.distill.student import StudentLayers, init_student, maximally_spaced
from whisperkit_tools.errors import CheckpointError, OptionsError


@pytest.mark.parametrize(
    ("count", "layers", "expected"),
    # The paper's students: distil-large-v2 has layers 0 and 31 of 32, distil-medium.en 0 and 23 of 24.
    [
        (2, 32, (0, 31)),
        (2, 24, (0, 23)),
        (1, 4, (0,)),
        (4, 4, (0, 1, 2, 3)),
        (3, 5, (0, 2, 4)),
        (4, 32, (0, 10, 21, 31)),
    ],
)
def test_layers_are_maximally_spaced(count, layers, expected):
    assert maximally_spaced(count, layers) == expected


@pytest.fixture
def teacher(tmp_path):
    """A folder with a teacher of four decoder layers and three encoder layers."""
    folder = save(small_model(decoder_layers=4, encoder_layers=3), tmp_path / "teacher")
    path = folder / "generation_config.json"
    edit_json(path, alignment_heads=[[3, 1]], no_timestamps_token_id=18)
    return folder


def test_a_student_computes_what_its_layers_compute_in_transformers(teacher, tmp_path):
    student = init_student(
        open_checkpoint(str(teacher)), tmp_path / "student", StudentLayers(decoder=(1, 3), encoder=(0, 2))
    )
    expected = WhisperForConditionalGeneration.from_pretrained(teacher).eval()
    for part, kept in ((expected.model.decoder, (1, 3)), (expected.model.encoder, (0, 2))):
        part.layers = torch.nn.ModuleList(part.layers[index] for index in kept)
        for index, layer in enumerate(part.layers):
            for name in ("self_attn", "encoder_attn"):
                if hasattr(layer, name):
                    getattr(layer, name).layer_idx = index
    found = WhisperForConditionalGeneration.from_pretrained(student.folder).eval()
    inputs = {"input_features": torch.randn(1, 80, 3000), "decoder_input_ids": torch.tensor([[11, 12, 15, 3]])}
    with torch.no_grad():
        torch.testing.assert_close(found(**inputs).logits, expected(**inputs).logits)
    assert (found.config.decoder_layers, found.config.encoder_layers) == (2, 2)


def test_the_record_names_the_teacher_and_whether_the_encoder_is_shared(teacher, tmp_path):
    for layers, shared in ((StudentLayers(2), True), (StudentLayers(2, 2), False)):
        student = init_student(open_checkpoint(str(teacher)), tmp_path / f"student-{shared}", layers)
        record = json.loads((student.folder / "distillation.json").read_text())
        assert record["teacher"] == str(teacher)
        assert record["teacher_sha256"] == open_checkpoint(str(teacher)).content_sha256
        assert record["decoder_layers"] == [0, 3]
        assert record["shares_encoder"] is shared


def test_heads_of_the_teacher_are_not_the_students(teacher, tmp_path):
    student = init_student(open_checkpoint(str(teacher)), tmp_path / "student")
    assert "alignment_heads" not in json.loads((student.folder / "generation_config.json").read_text())


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"decoder": 5}, "decoder_layers asks for 5 layers, but the teacher has 4"),
        ({"decoder": (0, 4)}, "decoder_layers asks for layer 4, but the teacher has 4"),
        ({"decoder": 2, "encoder": 7}, "encoder_layers asks for 7 layers"),
        ({"decoder": 0}, "decoder_layers is 0; the minimum is 1"),
        ({"decoder": (3, 1)}, "decoder_layers names layers 3, 1; expected indices from 0 in rising order"),
    ],
)
def test_layers_that_the_teacher_lacks_are_refused(teacher, tmp_path, layers, message):
    with pytest.raises(OptionsError, match=message):
        init_student(open_checkpoint(str(teacher)), tmp_path / "student", StudentLayers(**layers))
    assert not (tmp_path / "student").exists()


def test_a_folder_is_replaced_only_when_asked_and_only_if_it_is_a_checkpoint(teacher, tmp_path):
    opened = open_checkpoint(str(teacher))
    folder = tmp_path / "student"
    init_student(opened, folder)
    with pytest.raises(CheckpointError, match="already exists; replace it with force=True"):
        init_student(opened, folder)
    init_student(opened, folder, StudentLayers(1), force=True)
    assert json.loads((folder / "config.json").read_text())["decoder_layers"] == 1
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="holds files but is not a checkpoint"):
        init_student(opened, tmp_path / "papers", force=True)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["papers", "student", "teacher"]


def test_the_command_makes_a_student_of_the_demo(wkt, tmp_path):
    folder = tmp_path / "student"
    code, out, err = wkt("init-student", "demo", "-o", folder, "--decoder-layers", "1")
    assert code == 0
    assert out.splitlines()[:2] == ["encoder      layers 0, 1, 2", "decoder      layers 0"]
    assert "alignment heads" in err
    WhisperProcessor.from_pretrained(folder)
    original = open_checkpoint("demo")
    opened = open_checkpoint(str(folder))
    assert opened.dims.decoder_layers == 1
    assert {tensor.dtype for tensor in opened.tensors.values()} == {
        tensor.dtype for tensor in original.tensors.values()
    }
    code, _, err = wkt("init-student", "demo", "-o", tmp_path / "other", "--decoder-layers", "1.5")
    assert (code, "--decoder-layers: '1.5' is neither a number of layers nor indices" in err) == (2, True)
