"""Messages of the library name options by their field; each command shows them as its own flags."""

import ast
from pathlib import Path

import click
import pytest

from whisperkit_tools.cli import COMMANDS, cli, flags
from whisperkit_tools.errors import OptionsError, option

ROOT = Path(__file__).resolve().parents[2]


def _command(name):
    return cli.get_command(click.Context(cli), name)


@pytest.mark.parametrize(
    ("command", "mention", "shown"),
    [
        ("convert", option("kv_length"), "--kv-length"),
        ("convert", option("kv_length", 224), "--kv-length 224"),
        ("convert", option("turbo", True), "--turbo"),
        ("convert", option("turbo", False), "without --turbo"),
        ("convert", option("prefill", True), "--prefill"),
        ("convert", option("prefill", False), "--no-prefill"),
        ("convert", option("verify", False), "--no-verify"),
        ("convert", option("word_timestamps", True), "without --no-word-timestamps"),
        ("convert", option("max_wer_delta"), "--prefill-max-wer-delta"),
        ("convert", option("output_dir"), "--output-dir"),
        ("palettize", option("bundle"), "BUNDLE"),
        ("evaluate", option("bundle"), "BUNDLE"),
        ("transcribe", option("bundle"), "--bundle"),
        ("publish", option("bundles"), "BUNDLE"),
        ("transcribe", option("temperatures"), "--temperature"),
        ("evaluate", option("chunk_length_s"), "--chunk-length"),
        ("publish", option("pull_request", True), "--pr"),
        ("doctor", option("kv_length"), "--kv-length"),  # the command that has it is another one
    ],
)
def test_fields_are_shown_as_flags(command, mention, shown):
    assert flags.show_flags(f"<{mention}>", _command(command)) == f"<{shown}>"


def _mentioned():
    """Every field that the library mentions, by the file that mentions it."""
    found = {}
    for top in ("whisperkit_tools", "compile_hints", "quantization", "eval"):
        for path in (ROOT / top).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                is_mention = isinstance(node, ast.Call) and getattr(node.func, "id", "") == "option" and node.args
                if is_mention and isinstance(node.args[0], ast.Constant):
                    found.setdefault(node.args[0].value, path.name)
    return found


def test_every_field_that_the_library_mentions_is_an_option_of_a_command():
    """A field without an option would be shown as a flag that does not exist."""
    known = {name for command in COMMANDS for name in flags.table(_command(command))}
    mentioned = _mentioned()
    assert len(mentioned) > 20
    unknown = {
        field: file
        for field, file in mentioned.items()
        if not any(name in known for name in (field, *flags.FIELDS.get(field, ())))
    }
    assert unknown == {}


def test_every_exception_of_the_table_leads_to_an_option():
    known = {name for command in COMMANDS for name in flags.table(_command(command))}
    assert all(any(name in known for name in names) for names in flags.FIELDS.values())


def test_an_error_of_a_command_has_its_flags(wkt, monkeypatch):
    def fail(*args, **kwargs):
        raise OptionsError(f"{option('chip')} is wrong; see {option('strict', True)}")

    monkeypatch.setattr("whisperkit_tools.pipeline.checks.find_functions", fail)
    code, _, err = wkt("lint", "x.mlpackage")
    assert (code, err) == (2, "wkt: error: --chip is wrong; see --strict\n")


WRONG = [
    # (command, arguments, how the message names what is wrong)
    ("convert", ("demo", "--kv-length", "9999"), "--kv-length"),
    ("convert", ("demo", "--kv-length", "-1"), "--kv-length"),
    ("convert", ("demo", "--deployment-target", "ios9"), "--deployment-target"),
    ("convert", ("demo", "--stateful"), "--deployment-target"),
    ("convert", ("demo", "--audio-encoder-attention", "dog"), "--audio-encoder-attention"),
    ("convert", ("demo", "--text-decoder-attention", "dog"), "--text-decoder-attention"),
    ("convert", ("demo", "--turbo", "--audio-encoder-attention", "cat"), "--audio-encoder-attention"),
    ("convert", ("demo", "--attention-chunk-size", "64"), "--attention-chunk-size"),
    ("convert", ("demo", "--audio-encoder-attention", "split-kv", "--attention-chunk-size", "33"), "chunk"),
    ("convert", ("demo", "--logits-chunk-size", "3"), "--logits-chunk-size"),
    ("convert", ("demo", "--strict"), "--strict"),
    ("convert", ("demo", "--prefill", "--prefill-from", "birds"), "--prefill-from"),
    ("convert", ("demo", "--prefill", "--prefill-max-wer-delta", "-1"), "--prefill-max-wer-delta"),
    ("convert", ("demo", "--prefill-from", "noise"), "--prefill-from"),
    ("palettize", ("BUNDLE", "--bits", "few"), "--bits"),
    ("palettize", ("BUNDLE", "--bits", "7"), "7"),
    ("palettize", ("BUNDLE", "--target-size", "big"), "--target-size"),
    ("palettize", ("BUNDLE", "--target-size", "-3MB"), "--target-size"),
    ("palettize", ("BUNDLE", "--target-bits", "0"), "0"),
    ("palettize", ("BUNDLE", "--allowed-nbits", "2,x"), "--allowed-nbits"),
    ("palettize", ("BUNDLE", "--qoi-min", "200"), "200"),
    ("palettize", ("BUNDLE", "--plot", "x.pdf"), "--plot"),
    ("palettize", ("BUNDLE", "--windows", "0"), "--windows"),
    ("evaluate", ("BUNDLE", "--dataset", "demo", "--backend", "nonsense"), "nonsense"),
    ("evaluate", ("BUNDLE", "--dataset", "demo", "--backend", "openai"), "--backend"),
    ("evaluate", ("BUNDLE", "--dataset", "demo", "--normalizer", "mine"), "--normalizer"),
    ("evaluate", ("BUNDLE", "--dataset", "demo", "--noise-snr", "loud"), "--noise-snr"),
    ("evaluate", ("BUNDLE", "--dataset", "demo", "--noise-snr", "900"), "--noise-snr"),
    ("evaluate", ("BUNDLE", "--dataset", "demo", "--hop", "-1"), "--hop"),
    ("evaluate", ("BUNDLE", "--dataset", "demo", "--temperature", "9"), "--temperature"),
    ("evaluate", ("BUNDLE", "--dataset", "demo", "--min-duration", "-3"), "duration"),
    ("evaluate", ("BUNDLE", "--dataset", "demo", "--min-duration", "3", "--max-duration", "2"), "--min-duration"),
    ("evaluate", ("BUNDLE", "--dataset", "demo", "--backend-option", "x"), "--backend-option"),
    ("evaluate", ("BUNDLE", "--dataset", "demo", "--device", "toaster", "--limit", "1"), "--device"),
    ("transcribe", ("AUDIO", "--language", "klingon"), "--language"),
    ("transcribe", ("AUDIO", "--temperature", "warm"), "--temperature"),
    ("transcribe", ("AUDIO", "--temperature", "-1"), "--temperature"),
    ("transcribe", ("AUDIO", "--chunk-length", "99"), "--chunk-length"),
    ("transcribe", ("AUDIO", "--device", "toaster"), "--device"),
    ("transcribe", ("AUDIO", "--prompt", "<|en|>"), "--prompt"),
    ("lint", ("BUNDLE", "--chip", "z80"), "--chip"),
    ("lint", ("BUNDLE", "--ignore", "nothing"), "--ignore"),
    ("estimate", ("BUNDLE", "--chip", "m1,z80"), "--chip"),
    ("report", ("RUN", "RUN"), "--output"),
    ("publish", ("BUNDLE",), "--repo"),
    ("publish", ("BUNDLE", "--to", "x", "--revision", "y"), "--revision"),
    ("publish", ("BUNDLE", "--to", "x", "--allow-unproven", " "), "--allow-unproven"),
    ("publish", ("BUNDLE", "--to", "x", "--device-table", "missing.json"), "--device-table"),
    ("unpublish", ("./x", "variant", "--revision", "y"), "--revision"),
]


@pytest.mark.parametrize(("command", "arguments", "named"), WRONG)
def test_a_value_that_the_user_got_wrong_exits_2_and_is_named(
    wkt, demo_bundle, tmp_path, monkeypatch, command, arguments, named
):
    from whisperkit_tools.demo import demo_utterances

    monkeypatch.chdir(tmp_path)
    words = {"BUNDLE": demo_bundle, "AUDIO": demo_utterances()[0].path, "RUN": tmp_path}
    bundle = ("--bundle", demo_bundle) if command == "transcribe" else ()
    code, out, err = wkt(command, *(words.get(word, word) for word in arguments), *bundle)
    assert (code, out) == (2, ""), err
    assert named in err
    assert "Traceback" not in err
