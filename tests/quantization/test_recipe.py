"""Recipes: written, edited, given back; and what is refused."""

import json

import pytest

from whisperkit_tools.errors import OptionsError, RecipeError
from whisperkit_tools.quantization.compression import Compression
from whisperkit_tools.quantization.recipe import (
    FORMS_ON_REQUEST,
    AllowedCompressions,
    Recipe,
    StorageOption,
    allowed_for,
    check_allowed,
    check_recipe,
    match_patterns,
    read_recipe,
    write_recipe,
)

A, B = ("AudioEncoder", "a_weight"), ("TextDecoder", "b_weight")
SHAPES = {A: (64, 32, 1, 1), B: (128, 32)}
IOS16, IOS18 = 7, 9


@pytest.fixture
def written(tmp_path):
    entries = {A: StorageOption(Compression(4, outlier_share=0.005), 1200, 0.01), B: StorageOption(None, 8192, 0.0)}
    path = tmp_path / "recipe.json"
    write_recipe(Recipe({"AudioEncoder": "0" * 64}, IOS16, entries), path)
    return path


def test_a_recipe_comes_back_as_it_was_written(written):
    assert read_recipe(written) == {A: Compression(4, outlier_share=0.005), B: None}
    content = json.loads(written.read_text())
    assert content["nbytes"] == 9392
    assert content["divergence"] == 0.01


def test_a_recipe_can_be_edited(written):
    content = json.loads(written.read_text())
    content["tensors"]["TextDecoder"]["b_weight"] = {"compression": {"nbits": 6}}
    written.write_text(json.dumps(content))
    choices = read_recipe(written)
    assert choices[B] == Compression(6)
    check_recipe(choices, SHAPES, IOS16)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", 'no object "tensors"'),
        ('{"format": 9, "tensors": {}}', "format 9"),
        ('{"format": 1, "tensors": {"A": {"w": {"compression": {"nbits": 5}}}}}', "A/w: .*nbits is 5"),
        ('{"format": 1, "tensors": {"A": {"w": 4}}}', "A/w: expected"),
        ('{"format": 1, "tensors": {"A": 4}}', "A: expected an object"),
    ],
)
def test_what_is_no_recipe_is_refused(tmp_path, content, message):
    path = tmp_path / "r.json"
    path.write_text(content)
    with pytest.raises(RecipeError, match=message):
        read_recipe(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"nothing.json: cannot be read"):
        read_recipe(tmp_path / "nothing.json")


def test_a_recipe_for_another_model_is_refused():
    with pytest.raises(
        RecipeError, match=r"another model: it has 1 weights that the bundle lacks .*x.* and nothing for 1"
    ):
        check_recipe({A: None, ("AudioEncoder", "x"): None}, SHAPES, IOS16)


def test_a_recipe_that_does_not_fit_names_all_problems():
    grouped = Compression(4, "per_grouped_channel", group_size=24)
    with pytest.raises(
        RecipeError, match=r"64 channels are not a multiple of 24.*3 bits needs deployment target iOS 18"
    ):
        check_recipe({A: grouped, B: Compression(3)}, SHAPES, IOS16)


def test_wishes_need_a_target():
    with pytest.raises(
        OptionsError, match="3 bits needs deployment target iOS 18 / macOS 15, but the bundle is for iOS 16"
    ):
        check_allowed(AllowedCompressions(nbits=(3, 4)), IOS16)
    with pytest.raises(OptionsError, match=r"groups of 16 .* needs deployment target iOS 18"):
        check_allowed(AllowedCompressions(group_size=16), IOS16)
    check_allowed(AllowedCompressions(nbits=(3, 4), group_size=16), IOS18)
    with pytest.raises(OptionsError, match="allowed_nbits: unsupported bit width 5; choose from 1, 2, 3, 4, 6, 8"):
        AllowedCompressions(nbits=(5,))
    with pytest.raises(OptionsError, match="group_size is 0"):
        AllowedCompressions(group_size=0)


def test_options_are_those_the_target_has():
    plain = allowed_for((64, 48, 1, 1), AllowedCompressions(), IOS16)
    assert {str(o) for o in plain} == {"2 bits", "4 bits", "6 bits", "8 bits", str(Compression(8, kind="linear"))}
    assert {o.nbits for o in plain} == {2, 4, 6, 8}
    assert all(o.spec_version == IOS16 for o in plain)
    later = allowed_for((64, 32, 1, 1), AllowedCompressions(), IOS18)
    assert {o.nbits for o in later} == {2, 3, 4, 6, 8}
    assert not any(o.group_size for o in allowed_for((50, 31), AllowedCompressions(), IOS18))
    assert {o.nbits for o in allowed_for((64, 32), AllowedCompressions(nbits=(4,)), IOS18)} == {4}


def test_integers_are_considered_where_their_scales_are_small():
    def considered(shape, **wishes):
        return Compression(8, kind="linear") in allowed_for(shape, AllowedCompressions(**wishes), IOS16)

    assert considered((64, 48, 1, 1))
    assert considered((64, 48), nbits=(4, 8))
    assert not considered((64, 48), nbits=(4, 6))
    assert not considered((64, 32))  # half a bit an element
    assert not considered((384,))


def groups_of(options, nbits):
    return {(o.axis, o.group_size) for o in options if o.group_size and o.nbits == nbits}


def test_groups_along_either_axis_where_their_tables_are_small():
    # whisper-tiny's token embedding: rows cannot be grouped by 16, and columns are so long that tables cost nothing.
    embedding = allowed_for((51864, 384), AllowedCompressions(), IOS18)
    assert all(groups_of(embedding, nbits) == {(1, 1), (1, 8), (1, 16), (1, 32)} for nbits in (2, 3, 4, 6))
    assert groups_of(embedding, 8) == set()
    square = allowed_for((384, 384, 1, 1), AllowedCompressions(), IOS18)
    assert groups_of(square, 4) == {(0, 16), (0, 32), (1, 8), (1, 16), (1, 32)}
    # A table of 64 entries for 16 * 128 elements is 0.5 bits an element, for 32 * 128 half of that.
    assert groups_of(allowed_for((128, 128), AllowedCompressions(), IOS18), 6) == {(0, 32), (1, 32)}
    assert groups_of(allowed_for((384,), AllowedCompressions(), IOS18), 4) == set()
    # A group of all channels is one palette for the whole weight.
    assert groups_of(allowed_for((768, 16), AllowedCompressions(), IOS18), 2) == {(0, 16), (0, 32), (1, 1), (1, 8)}


def test_a_named_group_size_is_considered_along_both_axes_whatever_its_tables():
    options = allowed_for((96, 48), AllowedCompressions(group_size=24), IOS18)
    assert groups_of(options, 8) == {(0, 24), (1, 24)}


def test_vectors_scales_and_outliers_are_considered_on_request():
    def found(*forms, version=IOS18, outliers=True):
        options = allowed_for((64, 32), AllowedCompressions(forms=forms), version, outliers=outliers)
        kinds = {"vectors": any(o.cluster_dim > 1 for o in options)}
        kinds["scales"] = {o.axis for o in options if o.per_channel_scale} == {0, 1}
        kinds["outliers"] = any(o.outlier_share for o in options)
        return {name for name, is_there in kinds.items() if is_there}

    assert found() == set()
    for name in FORMS_ON_REQUEST:
        assert found(name) == {name}
    assert found(*FORMS_ON_REQUEST) == set(FORMS_ON_REQUEST)
    assert found("outliers", version=IOS16) == {"outliers"}
    assert found("outliers", outliers=False) == set()
    with pytest.raises(OptionsError, match="allow: unknown form 'blocks'; choose from vectors, scales, outliers"):
        AllowedCompressions(forms=("vectors", "blocks"))
    with pytest.raises(OptionsError, match=r"vectors of 2 needs deployment target iOS 18.*scales needs deployment"):
        check_allowed(AllowedCompressions(forms=("vectors", "scales", "outliers")), IOS16)
    check_allowed(AllowedCompressions(forms=("outliers",)), IOS16)


def test_patterns_match_names_with_and_without_the_component():
    assert match_patterns(tuple(SHAPES), ("a_*",)) == {A}
    assert match_patterns(tuple(SHAPES), ("TextDecoder/*", "a_weight")) == {A, B}
    with pytest.raises(
        OptionsError, match=r"keep nope x_\* matches no weight; weights are called AudioEncoder/a_weight"
    ):
        match_patterns(tuple(SHAPES), ("nope", "a_*", "x_*"))
