"""The house rules that a checkout cannot see by itself: what ships, who imports whom, what `wkt --help` costs."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
from helpers import house

import whisperkit_tools
from whisperkit_tools import contract
from whisperkit_tools.cli import COMMANDS, cli

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "whisperkit_tools"

# What every room may import.
GROUND_FLOOR = {
    "compression_records", "contract", "dimensions", "errors", "files", "folders", "front_matter",
    "generation_config", "intervals", "languages", "limits", "manifest", "media", "paths", "progress", "records",
    "signals", "speech", "strict_json", "terminal_text",
}  # fmt: skip
# Room: what it may import of the house, besides itself and the ground floor.
ROOMS = {
    "compile_hints": set(),
    "compile_hints.lint": {"compile_hints", "mil"},
    "quantization": {"decoder", "memory", "mil"},
    "eval": set(),
    "eval.metrics": set(),
    **{name: set() for name in sorted(GROUND_FLOOR)},
    "bundle": {"mil"},
    "demo": set(),
    "mil": set(),
    "decoder": {"bundle", "mil"},
    "checkpoint": {"compile_hints", "demo"},
    "conversion": {
        "bundle", "checkpoint", "compile_hints", "decoder", "demo", "eval.metrics", "mil", "transcribe",
    },
    "transcribe": {"bundle", "decoder", "memory", "mil"},
    "publishing": {"bundle", "eval"},
    "compress": {
        "bundle", "conversion", "decoder", "demo", "eval", "memory", "mil", "quantization", "transcribe",
    },
    "distill": {"bundle", "checkpoint", "compile_hints", "conversion", "decoder", "demo", "eval", "mil", "transcribe"},
}  # fmt: skip


def _settings():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def test_every_package_folder_is_listed_so_that_the_wheel_has_it():
    assert set(_settings()["packages"]) == _folders()


def _folders():
    found = set()
    for top in (PACKAGE, *(path for path in PACKAGE.iterdir() if path.is_symlink())):
        prefix = "whisperkit_tools" if top == PACKAGE else f"whisperkit_tools.{top.name}"
        for path in top.resolve().rglob("__init__.py"):
            found.add(".".join((prefix, *path.parent.relative_to(top.resolve()).parts)))
    return found


def test_the_outer_folders_are_linked_and_mapped():
    mapped = _settings()["package-dir"]
    for name in ("compile_hints", "eval", "quantization"):
        link = PACKAGE / name
        assert link.is_symlink()
        assert link.resolve() == ROOT / name
        assert mapped[f"whisperkit_tools.{name}"] == name


def _inside(path: Path) -> Path:
    """The path as it is inside the import package."""
    relative = path.relative_to(ROOT)
    return relative if relative.parts[0] != "whisperkit_tools" else relative.relative_to("whisperkit_tools")


def _room_of(path: Path) -> str:
    parts = _inside(path).with_suffix("").parts
    return ".".join(parts[:2]) if ".".join(parts[:2]) in ROOMS else parts[0]


def _imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def _upward(path: Path) -> list[str]:
    room = _room_of(path)
    if room not in ROOMS:
        return []
    allowed = ROOMS[room] | GROUND_FLOOR | {room, "__version__"}
    wrong = {found for name in _imports(path) if (found := _imported_room(name)) and not _covers(allowed, found)}
    return [f"{path.relative_to(ROOT)} imports {name}" for name in sorted(wrong)]


def _imported_room(name: str) -> str:
    """The room of an imported name; empty outside the house."""
    parts = name.split(".")
    if parts[0] != "whisperkit_tools" or len(parts) == 1:
        return ""
    inner = ".".join(parts[1:3])
    return inner if inner in ROOMS else parts[1]


def _covers(allowed: set[str], room: str) -> bool:
    """Whether a room, or the one around it, is allowed."""
    return room in allowed or room.partition(".")[0] in allowed


def test_no_room_imports_upward():
    files = [
        path
        for top in ("whisperkit_tools", "compile_hints", "quantization", "eval")
        for path in (ROOT / top).rglob("*.py")
    ]
    assert [line for path in files for line in _upward(path)] == []


def test_the_import_guard_closes(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    bad = tmp_path / "compile_hints" / "bad.py"
    bad.parent.mkdir()
    bad.write_text("from whisperkit_tools.mil.program import Program\n")
    assert _upward(bad) == ["compile_hints/bad.py imports mil"]
    metrics = tmp_path / "eval" / "metrics" / "wer.py"
    metrics.parent.mkdir(parents=True)
    metrics.write_text(
        "from whisperkit_tools.eval.schema import ResultRow\n"
        "from whisperkit_tools.eval.metrics.normalize import Normalizer\n"
    )
    assert _upward(metrics) == ["eval/metrics/wer.py imports eval"]
    table = tmp_path / "whisperkit_tools" / "conversion" / "table.py"
    table.parent.mkdir(parents=True)
    table.write_text(
        "from whisperkit_tools.eval.metrics.wer import score\nfrom whisperkit_tools.eval.runs.tasks import tasks\n"
    )
    assert _upward(table) == ["whisperkit_tools/conversion/table.py imports eval"]
    bad.with_name("residency.py").write_text("from whisperkit_tools.transcribe.audio.load import read\n")
    assert _upward(bad.with_name("residency.py")) == ["compile_hints/residency.py imports transcribe"]


# Words that the contract shares with everyday English and Python.
_EVERYDAY = {"audio", "language", "logits", "main", "task"}
# `input_ids` and the names of encoders are other libraries' words there.
_OTHER_LIBRARIES = frozenset({"eval.", "distill."})
# Scripts with a command line of their own.
_OWN_COMMAND_LINE = frozenset({"distill.demo_model.make_demo", "distill.demo_model.__main__"})


@pytest.fixture(scope="module")
def parsed():
    return house.modules()


def test_no_modules_import_each_other_in_a_circle(parsed):
    assert house.circles(parsed) == []


def test_only_the_command_line_knows_its_flags(parsed):
    assert house.flags(parsed, _own_flags(), known=_OWN_COMMAND_LINE) == []


def _own_flags():
    commands = [cli.get_command(click.Context(cli), name) for name in COMMANDS]
    return frozenset(
        flag for command in commands for option in command.params for flag in (*option.opts, *option.secondary_opts)
    )


def test_names_of_the_contract_are_spelled_out_in_the_contract_alone(parsed):
    assert house.spelled_out(parsed, _contract_names(), elsewhere=_OTHER_LIBRARIES) == []


def _contract_names():
    values = [
        value
        for name, value in vars(contract).items()
        if name.isupper() and not name.endswith("TARGETS") and "ATTENTION" not in name
    ]
    names = {
        word
        for value in values
        for word in ([value] if isinstance(value, str) else value if isinstance(value, tuple) else [])
    }
    return frozenset(name for name in names if isinstance(name, str)) - _EVERYDAY


def test_no_two_public_classes_share_a_name(parsed):
    assert house.doubled_classes(parsed) == {}


def test_no_module_hides_a_name_of_the_face():
    """Importing a submodule sets an attribute of the package, which would replace a verb of the same name."""
    modules = {path.stem for path in PACKAGE.iterdir() if (path / "__init__.py").is_file() or path.suffix == ".py"}
    assert modules & set(whisperkit_tools.__all__) == set()


def test_the_house_guards_close(tmp_path):
    """Each rule finds a breach of it, inside functions too."""
    room = tmp_path / "whisperkit_tools" / "room"
    room.mkdir(parents=True)
    (room / "__init__.py").write_text("")
    (room / "one.py").write_text(
        '"""Doc."""\nfrom whisperkit_tools.room.two import B\n\nclass Same:\n    """See --force."""\n\n'
        'NAME = "key_cache"\n'
    )
    (room / "two.py").write_text(
        '"""A key_cache."""\ndef late():\n    from whisperkit_tools.room import one\n\nclass Same: ...\n'
        'HINT = "choose with -o"\n'
    )
    (room / "typed.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from whisperkit_tools.room.typed_too import X\n"
    )
    (room / "typed_too.py").write_text("from whisperkit_tools.room.typed import Y\n# a well-known word, x - y, --\n")
    (tmp_path / "whisperkit_tools" / "cli").mkdir()
    (tmp_path / "whisperkit_tools" / "cli" / "fine.py").write_text('HELP = "--force, -o"\n')
    found = house.modules(tmp_path)
    assert house.circles(found) == [["room.one", "room.two"]]
    own = _own_flags()
    assert {"--force", "-o", "--no-word-timestamps"} <= own
    assert house.flags(found, own) == ["room.one:5: --force", "room.two:6: -o"]
    assert house.flags(found, own, known=frozenset({"room.one", "room.two"})) == []
    names = _contract_names()
    assert {"TextDecoder", "key_cache", "alignment_heads_weights", "project_audio"} <= names
    assert house.spelled_out(found, names, elsewhere=frozenset()) == ["room.one:7: key_cache"]
    assert house.spelled_out(found, names, elsewhere=frozenset({"room."})) == []
    assert house.doubled_classes(found) == {"Same": ["room.one", "room.two"]}


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom whisperkit_tools.cli import cli\n"
        "cli.main(['--help'], standalone_mode=False)\n"
        "print(sorted({'torch', 'coremltools', 'transformers', 'numpy'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_command_modules_import_nothing_heavy():
    """In one process: what none of them imports, no single one does."""
    names = sorted(path.stem for path in (PACKAGE / "cli").glob("*.py") if path.stem != "__init__")
    assert {"convert", "transcribe", "palettize", "evaluate", "publish", "compare_published"} <= set(names)
    heavy = "{'torch', 'coremltools', 'transformers'}"
    imports = "".join(
        f"import whisperkit_tools.cli.{name}\nprint({name!r}, sorted({heavy} & set(sys.modules)))\n" for name in names
    )
    done = subprocess.run([sys.executable, "-c", f"import sys\n{imports}"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{name} []" for name in names]


def test_nothing_mentions_how_it_was_made():
    """Paths of the machine it was written on have no place in a published tree."""
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if files.returncode:
        pytest.skip("not a git checkout")
    text = [
        ROOT / line for line in files.stdout.splitlines() if line.endswith((".py", ".md", ".toml", ".json", "Makefile"))
    ]
    assert [str(path) for path in text if path.is_file() and "/work" + "/" in path.read_text(encoding="utf-8")] == []


def test_fuzzing_finds_the_property_tests():
    """`make fuzz` names its files by a search, which finds nothing if the tests move."""
    done = subprocess.run(["make", "-n", "fuzz"], cwd=ROOT, capture_output=True, text=True, check=True)
    search = re.search(r"\$\((grep .*)\)", done.stdout)
    assert search is not None
    found = subprocess.run(["sh", "-c", search[1]], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert {"tests/quantization/test_allocation.py", "tests/transcribe/windows/test_chunked.py"} <= set(found)
