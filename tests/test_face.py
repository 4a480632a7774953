"""The package face: lazy, complete, with the keywords of the commands, and with examples that run."""

import doctest
import importlib
import inspect
import shutil
import subprocess
import sys

import click
import pytest

import whisperkit_tools as wkt
from whisperkit_tools.cli import cli
from whisperkit_tools.demo import demo_utterances

VERBS = (
    "convert", "palettize", "evaluate", "report", "publish", "pull", "lint", "estimate", "verify", "init_student",
    "pseudo_label", "filter_labels",
)  # fmt: skip
# Options that say what is printed. A verb returns its findings instead.
PRINTING = {
    "as_json": "the result is an object",
    "operations": "the result has all operations",
    "strict": "LintReport.require_clean()",
}
PRINTED_BY = {"lint": {"as_json", "operations", "strict"}}


def _command(name):
    return cli.get_command(click.Context(cli), name.replace("_", "-"))


def _parameters(name):
    return inspect.signature(getattr(wkt, name)).parameters


def test_importing_the_package_imports_nothing_heavy():
    heavy = "{'torch', 'numpy', 'coremltools', 'transformers', 'click'}"
    code = f"import sys, whisperkit_tools as wkt\ndir(wkt)\nprint(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", wkt.__all__)
def test_every_public_name_is_there(name):
    assert getattr(wkt, name) is not None
    assert name in dir(wkt)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'palettise'"):
        wkt.palettise  # noqa: B018


def test_type_checkers_see_the_same_names():
    source = inspect.getsource(wkt)
    block = source[source.index("if TYPE_CHECKING:") : source.index("__version__ =")]
    imported = {word.strip(" ,()") for line in block.splitlines() for word in line.split("import")[-1].split(",")}
    assert set(wkt.__all__) - {"__version__"} <= imported


@pytest.mark.parametrize("name", VERBS)
def test_keywords_are_the_options_of_the_command(name):
    params = {param.name for param in _command(name).params}
    printed = PRINTED_BY.get(name, {"as_json"})
    assert printed <= set(PRINTING)
    assert params - printed == set(_parameters(name)) - {"progress"}


def test_options_are_passed_under_their_long_names():
    for name in VERBS:
        for param in _command(name).params:
            if isinstance(param, click.Option) and param.name != "as_json":
                flag = max(param.opts, key=len).removeprefix("--")
                # `--no-x` switches x off, unless it is a quantity of its own.
                assert param.name in {name.replace("-", "_") for name in (flag, flag.removeprefix("no-"))}


@pytest.mark.parametrize("name", VERBS)
def test_defaults_are_those_of_the_command(name):
    parameters, command = _parameters(name), _command(name)
    required = [word for param in command.params if param.required for word in _given(param)]
    chosen = command.make_context(name, required).params
    for param in command.params:
        if not param.required and param.name not in PRINTED_BY.get(name, {"as_json"}):
            default = parameters[param.name].default
            assert default is not inspect.Parameter.empty, param.name
            assert _comparable(chosen[param.name]) == _comparable(default), param.name


def _given(param):
    return [param.opts[0], "x"] if isinstance(param, click.Option) else ["x"]


def _comparable(value):
    return () if value in ("", (), []) else str(value)


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_is_typed_and_documented(name):
    verb = getattr(wkt, name)
    annotations = inspect.get_annotations(verb)
    documented = inspect.getdoc(verb)
    assert {*inspect.signature(verb).parameters, "return"} == set(annotations)
    assert all(f"    {parameter}: " in documented for parameter in inspect.signature(verb).parameters)
    assert "Raises:" in documented


@pytest.fixture(scope="module")
def place(tmp_path_factory, demo_bundle):
    """A folder with the demo bundle as `bundles/acme_whisper-demo` and a recording, in which the examples run."""
    folder = tmp_path_factory.mktemp("examples")
    shutil.copytree(demo_bundle, folder / "bundles" / "acme_whisper-demo")
    shutil.copy(demo_utterances()[0].path, folder / "speech.flac")
    return folder


@pytest.mark.parametrize("name", (*VERBS, "open_checkpoint", "Bundle", "Package", "Program", "Transcriber"))
def test_examples_run(name, place, monkeypatch):
    monkeypatch.chdir(place)
    verb = getattr(wkt, name)
    module = importlib.import_module(verb.__module__)
    (example,) = doctest.DocTestFinder(recurse=False).find(verb, name, module=module)
    assert example.examples
    assert doctest.DocTestRunner(verbose=False).run(example).failed == 0
    for made in ("registry", "pulled", "report", "compressed", "converted"):
        shutil.rmtree(place / made, ignore_errors=True)


def test_turbo_means_what_the_option_means(tmp_path, monkeypatch):
    """The prefill is asked for, and may be omitted for a model that can have none."""
    from whisperkit_tools.pipeline import convert as pipeline

    configs = []

    def stop(source, config, *rest):
        configs.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline.conversion, "convert", stop)
    for options in ({"turbo": True}, {"turbo": True, "prefill": False}, {"prefill": True}, {}):
        with pytest.raises(KeyboardInterrupt):
            wkt.convert("demo", output_dir=tmp_path, **options)
    made = [config.prefill_options for config in configs]
    assert [options is not None for options in made] == [True, False, True, False]
    assert [options.required for options in made if options] == [False, True]
