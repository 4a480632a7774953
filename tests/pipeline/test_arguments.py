"""The forms in which the verbs accept paths, sizes, numbers and opened objects."""

from pathlib import Path

import pytest

from whisperkit_tools.bundle import Bundle
from whisperkit_tools.errors import BundleError, OptionsError
from whisperkit_tools.mil.package import Package
from whisperkit_tools.pipeline import arguments
from whisperkit_tools.publishing.registry.folder import FolderRegistry
from whisperkit_tools.publishing.registry.hub import HubRegistry


@pytest.mark.parametrize(
    ("value", "size"),
    [("600MB", 600_000_000), ("1.5 GB", 1_500_000_000), (" 20kb ", 20_000), ("950000", 950_000), (950_000, 950_000)],
)
def test_sizes(value, size):
    assert arguments.as_bytes(value) == size


@pytest.mark.parametrize("value", ["", "big", "0", "-3MB", "600MiB", "1.2.3", 0])
def test_what_is_not_a_size(value):
    with pytest.raises(OptionsError, match=r"target_size: .* is not a size such as 600MB"):
        arguments.as_bytes(value)


@pytest.mark.parametrize(
    ("value", "numbers"),
    [(None, None), (20, (20.0,)), ("20", (20.0,)), ("20, 0.5", (20.0, 0.5)), ([1, 2.5], (1.0, 2.5))],
)
def test_numbers(value, numbers):
    assert arguments.as_numbers("noise_snr", value, "20,10") == numbers


@pytest.mark.parametrize("value", ["vectors,scales", " vectors, scales,", ("vectors", "scales"), ["vectors", "scales"]])
def test_names(value):
    assert arguments.as_names(value) == ("vectors", "scales")
    assert arguments.as_names("") == ()


@pytest.mark.parametrize("value", ["loud", "1,,2", ""])
def test_what_is_not_a_list_of_numbers(value):
    with pytest.raises(OptionsError, match=r"noise_snr: .* is not a list of numbers such as 20,10"):
        arguments.as_numbers("noise_snr", value, "20,10")


@pytest.mark.parametrize(("value", "widths"), [(None, None), ("2, 4,4", (2, 4)), ((8, 6), (8, 6)), (["3"], (3,))])
def test_widths(value, widths):
    assert arguments.as_widths(value) == widths


@pytest.mark.parametrize("value", ["", "2,x", (), (-1,), "2.5"])
def test_what_is_not_a_list_of_widths(value):
    with pytest.raises(OptionsError, match=r"allowed_nbits: .* is not a list of bit widths"):
        arguments.as_widths(value)


def test_a_bundle_is_opened_once(demo_bundle):
    opened = arguments.as_bundle(str(demo_bundle))
    assert isinstance(opened, Bundle)
    assert arguments.as_bundle(opened) is opened
    assert arguments.as_bundle(None, demo_bundle.parent).path == demo_bundle
    assert arguments.as_bundles(opened) == arguments.as_bundles([demo_bundle]) == [opened]
    assert arguments.as_bundles(()) == []


def test_a_word_names_a_folder_or_a_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    for word in ("here", "./new", "new/", "/new", Path("new")):
        assert isinstance(arguments.open_registry(word), FolderRegistry)
    registry = arguments.open_registry("org/name", revision="next")
    assert isinstance(registry, HubRegistry)
    assert arguments.open_registry(registry) is registry
    with pytest.raises(OptionsError, match="revision names a branch, and a folder has no branches"):
        arguments.open_registry("./new", revision="next")


def test_packages_are_found_in_a_bundle_a_folder_and_alone(demo_bundle, tmp_path):
    found = arguments.find_packages(demo_bundle)
    assert list(found) == ["MelSpectrogram", "AudioEncoder", "TextDecoder"]
    assert found["AudioEncoder"] == Package(demo_bundle / "AudioEncoder.mlpackage")
    assert list(arguments.find_packages(demo_bundle / "AudioEncoder.mlpackage")) == ["AudioEncoder"]
    with pytest.raises(BundleError, match="no such bundle or package"):
        arguments.find_packages(tmp_path / "missing")
    with pytest.raises(BundleError, match=r"a folder with no \.mlpackage"):
        arguments.find_packages(tmp_path)


def test_functions_are_found_by_name(stateful_bundle):
    found = arguments.find_functions(stateful_bundle, None)
    assert {"TextDecoder", "TextDecoder:project_audio"} <= set(found)
    assert list(arguments.find_functions(stateful_bundle, "project_audio")) == ["TextDecoder:project_audio"]
    with pytest.raises(BundleError, match="no package has a function 'none'; there are main, project_audio"):
        arguments.find_functions(stateful_bundle, "none")
