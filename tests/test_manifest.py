"""The typed manifest: what wkt wrote is read, written again unchanged, and refused where a value has a wrong type.

`data/manifests` holds manifests of `wkt convert demo` (`--turbo`, `--draft-tokens 5`) and `wkt palettize`, with long
tables cut short. Some are of earlier versions, which recorded less.
`palettize_compared` is `palettize_tuned` with the comparison of another run.
"""

import hashlib
import json
from dataclasses import fields, is_dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from whisperkit_tools.compression_records import ComparisonRecord, CompressionRecord
from whisperkit_tools.dimensions import ModelDimensions
from whisperkit_tools.errors import BundleError
from whisperkit_tools.manifest import (
    MANIFEST,
    NO_MANIFEST,
    ConversionRecord,
    Manifest,
    ParityRecord,
    SourceRecord,
    ToolRecord,
    read_manifest,
    write_manifest,
)
from whisperkit_tools.records import Record

DATA = Path(__file__).parent / "data" / "manifests"
CURRENT = ("convert_turbo", "verifying", "palettize_settings")
NAMES = (*CURRENT, "palettize_tuned", "palettize_bits_6_rejected", "palettize_compared")


def load(name):
    return json.loads((DATA / f"{name}.json").read_text())


def text(value):
    return json.dumps(value, indent=2, ensure_ascii=False)


@pytest.mark.parametrize("name", NAMES)
def test_manifests_are_written_again_unchanged(name):
    assert text(Manifest.from_json(load(name), "m").to_json()) == text(load(name))


@pytest.mark.parametrize("name", CURRENT)
def test_a_new_manifest_has_the_keys_and_the_order_of_the_file(name):
    assert text(as_new(Manifest.from_json(load(name), "m")).to_json()) == text(load(name))


def as_new(value):
    """The same record as code makes it: without the memory of a file's keys."""
    if isinstance(value, Record):
        new = {item.name: as_new(getattr(value, item.name)) for item in fields(value) if item.name != "keys"}
        return replace(value, **new, keys=None)
    if isinstance(value, dict):
        return {key: as_new(one) for key, one in value.items()}
    return value


def test_values_are_found_by_name():
    manifest = Manifest.from_json(load("convert_turbo"), "m")
    assert manifest.source.name == "demo" and manifest.source.revision is None
    assert manifest.dimensions == ModelDimensions(
        n_mels=80, d_model=128, encoder_layers=3, encoder_attention_heads=4, encoder_ffn_dim=512, decoder_layers=2,
        decoder_attention_heads=4, decoder_ffn_dim=512, vocab_size=2248,
    )  # fmt: skip
    assert manifest.conversion.alignment_heads[4] == (1, 1)
    assert manifest.parity.psnr_db["TextDecoder"]["float16"]["logits"] == 68.2
    assert manifest.prefill.source == "speech" and manifest.prefill.evidence.nulls["zeros"].changed == 8
    assert manifest.compression is None
    compression = Manifest.from_json(load("palettize_tuned"), "m").compression
    assert compression.tuning.steps == 6 and compression.gate.qoi.value == 96.0 and not compression.rejected
    assert Manifest.from_json(load("palettize_bits_6_rejected"), "m").compression.rejected


def places(value, where=()):
    """Every place of a typed value in a manifest, down to the parts that stay plain JSON."""
    found = [where] if where else []
    if where == ("compression", "recipe"):
        return found
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return found + [place for key, child in children for place in places(child, (*where, key))]


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_type_is_refused_wherever_it_stands(name):
    tried = 0
    for place in places(load(name)):
        if place[0] == "format":
            continue
        content = load(name)
        parent = content
        for key in place[:-1]:
            parent = parent[key]
        parent[place[-1]] = wrong = ["x"] if isinstance(parent[place[-1]], dict | None) else {"a": [1]}
        with pytest.raises(BundleError) as caught:
            pytest.fail(f"{place} was read: {Manifest.from_json(content, 'b/wkt.json')}")
        dotted = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place).lstrip(".")
        assert str(caught.value).startswith(f"b/wkt.json: {dotted} is {wrong!r}, expected "), place
        tried += 1
    assert tried > 60


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"conversion": {"turbo": "yes"}}, "conversion.turbo is 'yes', expected true or false"),
        ({"conversion": {"turbo": 1}}, "conversion.turbo is 1, expected true or false"),
        ({"conversion": {"kv_length": 4.5}}, "conversion.kv_length is 4.5, expected an integer"),
        ({"conversion": {"kv_length": True}}, "conversion.kv_length is True, expected an integer"),
        ({"conversion": {"notes": [1]}}, "conversion.notes[0] is 1, expected a string"),
        ({"conversion": []}, "conversion is [], expected an object"),
        ({"source": {"org": None}}, "source.org is None, expected a string"),
        ({"parity": {"gate": {"float32_db": "70"}}}, "parity.gate.float32_db is '70', expected a number"),
        ({"compression": {"gate": {"shortfalls": "none"}}}, "compression.gate.shortfalls is 'none', expected a list"),
        ({"compression": {"gate": {"qoi": {"value": 1.0}}}}, "compression.gate.qoi has no low and high"),
        ({"files": {"a": {"sha256": "0"}}}, "files.a has no size_bytes"),
        ({"dimensions": {"n_mels": 80}}, "dimensions has no d_model and "),
    ],
)
def test_the_message_names_file_field_value_and_type(part, message):
    with pytest.raises(BundleError) as caught:
        Manifest.from_json(part, "b/wkt.json")
    assert str(caught.value).startswith(f"b/wkt.json: {message}")
    assert str(caught.value).endswith("; convert or download the bundle again")


def test_dimensions_that_make_no_model_are_refused():
    content = load("convert_turbo")
    content["dimensions"]["d_model"] = 130
    with pytest.raises(BundleError, match="dimensions: encoder_attention_heads is 4, which does not divide d_model"):
        Manifest.from_json(content, "m")
    content["dimensions"] |= {"d_model": 128, "n_wings": 2}
    with pytest.raises(BundleError, match="dimensions has n_wings, which this version of wkt does not know"):
        Manifest.from_json(content, "m")


def test_whole_numbers_stay_whole():
    content = {"parity": {"gate": {"float32_db": 70}}}
    assert text(Manifest.from_json(content, "m").to_json()) == text(content)


def test_what_an_earlier_version_did_not_record_stays_absent():
    content = load("convert_turbo")
    del content["prefill"], content["conversion"]["turbo"], content["conversion"]["stateful"]
    manifest = Manifest.from_json(content, "m")
    assert manifest.conversion.turbo is False and manifest.prefill is None
    assert text(manifest.to_json()) == text(content)


def test_unknown_keys_are_kept_where_they_stand():
    content = {"format": 1, "mood": {"good": True}, "conversion": {"wings": 2, "turbo": True}, "files": {}}
    manifest = Manifest.from_json(content, "m")
    assert manifest.extra == {"mood": {"good": True}} and manifest.conversion.extra == {"wings": 2}
    assert text(manifest.to_json()) == text(content)
    changed = replace(manifest, variant="v", conversion=replace(manifest.conversion, kv_length=64, turbo=False))
    assert changed.to_json() == {
        **content, "conversion": {"wings": 2, "turbo": False, "kv_length": 64}, "variant": "v",
    }  # fmt: skip


def test_a_new_manifest_omits_the_parts_that_do_not_apply():
    conversion = ConversionRecord(deployment_target="ios16", kv_length=448)
    manifest = Manifest(
        variant="v", tool=ToolRecord(name="wkt", version="1"), source=SourceRecord(name="demo"),
        conversion=conversion, parity=ParityRecord(),
    )  # fmt: skip
    assert list(manifest.to_json()) == [
        "format", "created", "variant", "tool", "libraries", "python", "source", "conversion", "parity", "files",
    ]  # fmt: skip
    assert list(manifest.to_json()["conversion"]) == list(load("convert_turbo")["conversion"])
    assert CompressionRecord().to_json()["tuning"] is None
    assert "comparison" not in CompressionRecord().to_json()
    assert CompressionRecord(comparison=ComparisonRecord(windows=3)).to_json()["comparison"]["windows"] == 3


def test_files_are_recorded_on_writing(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a").write_text("weights")
    (tmp_path / ".DS_Store").write_text("Finder")
    content = Manifest.from_json({**load("convert_turbo"), "mood": 1}, "m")
    write_manifest(tmp_path, content, clock=lambda: datetime(2026, 1, 2, tzinfo=UTC))
    written = json.loads((tmp_path / MANIFEST).read_text())
    assert written["created"] == "2026-01-02T00:00:00.000000+00:00"
    assert list(written) == [*(key for key in load("convert_turbo") if key != "files"), "mood", "files"]
    assert written["files"] == {
        "sub/a": {
            "sha256": "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c",  # printf weights | sha256sum
            "size_bytes": 7,
        }
    }
    assert read_manifest(tmp_path).files["sub/a"].size_bytes == 7


def test_no_manifest_is_an_empty_one(tmp_path):
    assert read_manifest(tmp_path) is NO_MANIFEST
    assert NO_MANIFEST.is_empty and NO_MANIFEST.to_json() == {}
    assert not Manifest.from_json(load("convert_turbo"), "m").is_empty


def test_the_content_digest_is_that_of_earlier_versions():
    """Reports and registries name bundles by it. The lines of the file list, sorted by their parts, are hashed."""
    digest = "c53973c1a341199c8bf1980f41abaf5162dac2a47bbf193c011d6543e38d5ee5"
    files = {name: {"sha256": hashlib.sha256(name.encode()).hexdigest(), "size_bytes": 1} for name in
             ("a.b/c", "a/b", "a", "config.json", "Ä/x")}  # fmt: skip
    lines = "".join(f"{name} {files[name]['sha256']}\n" for name in ("a", "a/b", "a.b/c", "config.json", "Ä/x"))
    manifest = Manifest.from_json({"files": files}, "m")
    assert manifest.content_sha256() == hashlib.sha256(lines.encode()).hexdigest()
    assert manifest.content_sha256() == digest


def test_every_field_has_a_type_that_the_reader_knows():
    """A record with an unsupported type would fail only on the file that has it."""
    seen = set()

    def visit(value):
        assert is_dataclass(value) or isinstance(value, (str, int, float, bool, tuple, dict, type(None)))
        if isinstance(value, Record):
            seen.add(type(value).__name__)
            for item in fields(value):
                visit(getattr(value, item.name))
        for one in value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else ():
            if isinstance(one, Record):
                visit(one)

    for name in NAMES:
        visit(Manifest.from_json(load(name), "m"))
    modules = {Manifest.__module__, CompressionRecord.__module__}
    assert seen == {item.__name__ for item in Record.__subclasses__() if item.__module__ in modules}
