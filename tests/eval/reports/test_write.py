"""Report files: what they say, what they refuse, and that hostile text stays text."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from whisperkit_tools.errors import DatasetError, OptionsError
from whisperkit_tools.eval.backends.base import BackendInfo
from whisperkit_tools.eval.reports import format as report_format
from whisperkit_tools.eval.reports.examples import json_in_script
from whisperkit_tools.eval.reports.html import PageOptions
from whisperkit_tools.eval.reports.markdown import _within_a_line
from whisperkit_tools.eval.reports.read import read_run
from whisperkit_tools.eval.reports.write import write_report, write_run_pages
from whisperkit_tools.eval.schema import (
    Bucket,
    Failure,
    Metrics,
    NoisePoint,
    NoSpeech,
    NoSpeechClip,
    ProblemInfo,
    Report,
    Streaming,
    WordTimestampError,
)
from whisperkit_tools.eval.typed_json import from_json

TEXT = "the quick brown fox jumps over the lazy dog"
HOSTILE = [
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "<!--<script>",
    "]]>&amp;&lt;b&gt;",
    "a\u202eb\u2066c",
    "line\u2028break\u2029s",
    "{{ 7*7 }}{% raw %}",
    "half\ud83dpair",
    "`|*_[x](javascript:alert(1))",
    "nul\x00l",
]


class Page(HTMLParser):
    """The elements of a page and its text, as a parser that is not ours sees them."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.scripts, self.texts, self._inside = [], [], [], None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else None
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag):
        self._inside = None if tag == self._inside else self._inside

    def handle_data(self, data):
        if self._inside == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)
        elif self._inside is None:
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    @property
    def data(self):
        return json.loads(next(text for attributes, text in self.scripts if attributes.get("id") == "data"))


def _page(folder):
    return Page((folder / "report.html").read_text(encoding="utf-8"))


@pytest.fixture
def runs(write_run):
    """A baseline and two candidates over three examples."""
    hypotheses = {
        "org_base": [TEXT, TEXT, TEXT.replace("lazy", "hazy")],
        "org_base_80MB": [TEXT, TEXT.replace("fox", "box"), TEXT],
        "org_base_40MB": [TEXT.replace("quick ", ""), TEXT.replace("dog", "dog oh dear"), "cat"],
    }
    keys, sizes = ("aaaaaaaa", "bbbbbbbb", "cccccccc"), (145_000_000, 80_000_000, 40_000_000)
    return [
        write_run(name, [(TEXT, text) for text in texts], key=key, size_bytes=size)
        for (name, texts), key, size in zip(hypotheses.items(), keys, sizes, strict=True)
    ]


def test_a_comparison_has_three_files_that_agree(runs, tmp_path):
    written = write_report(runs, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.html", "report.json", "report.md"]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["schema_version"] == 1
    assert [run["name"] for run in from_report(report)] == ["org_base", "org_base_80MB", "org_base_40MB"]
    assert [it["wer_difference"] for it in report["comparisons"]] == [0, (1 + 2 + 9 - 1) / 27]
    assert [it["id"] for it in report["comparisons"][1]["regressed"]] == ["utt-0002", "utt-0001", "utt-0000"]
    assert written.comparisons[1].wer_difference == report["comparisons"][1]["wer_difference"]
    page, markdown = _page(tmp_path / "out"), (tmp_path / "out" / "report.md").read_text()
    for figure in ("+40.74", "3.70", "44.44"):
        assert figure in page.text
        assert figure in markdown
    assert "org_base_40MB makes more errors than org_base" in page.text
    assert page.data["runs"] == ["org_base", "org_base_80MB", "org_base_40MB"]


def from_report(value):
    """Also through the reader of the schema, which raises for what does not fit."""
    from_json(Report, value)
    return value["runs"]


def test_the_page_has_the_alignment_of_each_run(runs, tmp_path):
    write_report(runs, tmp_path / "out")
    example = next(it for it in _page(tmp_path / "out").data["examples"] if it["id"] == "utt-0001")
    assert [result["c"] for result in example["r"]] == [[0, 0, 0], [1, 0, 0], [0, 0, 2]]
    assert example["r"][1]["o"] == [
        ["=", "the quick brown"], ["s", "fox", "box"], ["=", "jumps over the lazy dog"],
    ]  # fmt: skip
    assert example["r"][2]["o"] == [["=", TEXT], ["i", "oh dear"]]


def test_the_worst_come_first_and_the_limit_keeps_them(runs, tmp_path):
    write_report(runs, tmp_path / "out", page=PageOptions(examples_limit=2))
    page = _page(tmp_path / "out")
    assert [it["id"] for it in page.data["examples"]] == ["utt-0002", "utt-0001"]
    assert "The page holds the 2 worst of 3 examples." in page.text


def test_a_report_is_the_same_twice(runs, tmp_path):
    for name in ("one", "two"):
        write_report(runs, tmp_path / name)
    for name in ("report.json", "report.md", "report.html"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_one_run_gets_its_pages_in_its_own_folder(runs):
    before = {path.name: path.read_bytes() for path in runs[0].iterdir()}
    write_run_pages(runs[0])
    after = {path.name: path.read_bytes() for path in runs[0].iterdir()}
    assert after.keys() - before.keys() == {"report.html", "report.md"}
    assert {name: after[name] for name in before} == before
    assert "org_base" in _page(runs[0]).text


def test_everything_that_was_measured_is_said(write_run):
    metrics = Metrics(
        0.0421, 0.0213, 3, 2, 1, 90, (0.0392, 0.0451), 0.947, (0.931, 0.962), "org_base", 0.0111, 4,
        NoSpeech(12, 2, 7), WordTimestampError(900, 0.061, 0.04, 0.14, 0.81, 0.95),
    )  # fmt: skip
    folder = write_run(
        "org_base_80MB", [(TEXT, TEXT)], metrics=metrics, rows={0: {"speaker": "anna"}},
        noise=tuple(NoisePoint("white", snr, wer) for snr, wer in ((20.0, 0.05), (0.0, 0.4321))),
        streaming=Streaming(1.0, 0.91, 1.6, 2.12, 3.4, 0.12, 0.2, False, 0.0512, 300, 1),
        by_speaker=(Bucket("anna", 1, 2.0, 9, 0.0777), Bucket("bob", 1, 2.0, 9, 0.0333)),
        by_duration=(Bucket("0-5 s", 1, 2.0, 9, 0.0421),),
        problems=(ProblemInfo("utt-77", "missing_audio", "77.flac does not exist"),),
        failures=(Failure("utt-78", "the audio ends early"),),
    )  # fmt: skip
    write_run_pages(folder)
    page, markdown = _page(folder).text, (folder / "report.md").read_text()
    both = ["4.21", "3.92–4.51", "94.7", "43.21", "2.13%", "0.91 s", "2.12 s", "145", "61.0 ms", "0-5 s", "145"]
    for text in both:
        assert text in page, text
        assert text in markdown.replace("\\", ""), text
    for text in ("anna", "7.77", "utt-77", "77.flac does not exist", "the audio ends early", "executor"):
        assert text in page, text
    for line in ("1 example failed and is not in the figures", "1 example of the dataset was skipped"):
        assert line in page
        assert line in markdown


def test_markdown_keeps_transcripts_and_speakers_out(write_run):
    folder = write_run("org_base", [("a secret sentence", "a sacred sentence")], rows={0: {"speaker": "anna"}})
    write_run_pages(folder)
    markdown = (folder / "report.md").read_text()
    for private in ("secret", "sacred", "anna", "s0", "utt-0000"):
        assert private not in markdown


def test_figures_are_named_within_a_line():
    assert _within_a_line("Hallucinated words") == "hallucinated words"
    assert _within_a_line("WER of the confirmed text") == "WER of the confirmed text"


# ---- hostile input


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(write_run, text):
    folder = write_run(
        "org_base", [("one two", "one three")],
        rows={0: {"id": text, "reference": text, "hypothesis": text, "speaker": text, "language": text}},
        by_speaker=(Bucket(text, 1, 1.0, 1, 0.5), Bucket("other", 1, 1.0, 1, 0.1)),
        by_duration=(Bucket(text, 1, 1.0, 1, 0.5),), failures=(Failure(text, text),),
        machine={text: text}, options={"x": {text: text}}, problems=(ProblemInfo(text, text, text),),
    )  # fmt: skip
    write_run_pages(folder, PageOptions(title=text))
    page = _page(folder)
    example = page.data["examples"][0]
    kept = text.encode("utf-8", "replace").decode()  # a file holds no half of a surrogate pair
    assert [example["id"], example["t"], example["p"], example["r"][0]["t"]] == [kept] * 4
    assert [attributes.get("type") for attributes, _ in page.scripts] == ["application/json", None]
    assert {"img", "b"}.isdisjoint(tag for tag, _ in page.tags)
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    raw = (folder / "report.html").read_bytes()
    head = raw[: raw.index(b'id="data"')].decode("utf-8")
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00]", head), "what disguises itself is written out"
    shown = report_format.visible(text).encode("utf-8", "backslashreplace").decode()
    assert " ".join(shown.split()) in page.text
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    assert not re.search(r"(?<!\\)[<>]|(?<!\\)\]\(", markdown)


def test_hostile_names_keep_the_markdown_table_whole(write_run):
    folder = write_run("a|b\n| c | <img src=x>", [(TEXT, TEXT)])
    write_run_pages(folder)
    lines = (folder / "report.md").read_text().split("\n")
    at = next(i for i, line in enumerate(lines) if line.startswith("| Bundle"))
    cells = [len(re.findall(r"(?<!\\)\|", line)) for line in lines[at : at + 3]]
    assert len(set(cells)) == 1
    assert lines[at + 3] == ""


def test_json_in_a_script_reads_back_and_cannot_end_it():
    value = {text: [text] for text in HOSTILE}
    text = json_in_script(value)
    assert json.loads(text) == value
    assert not re.search("[<>&\u2028\u2029]", text)


def test_the_policy_names_the_page_s_own_script(runs):
    write_run_pages(runs[0])
    page = _page(runs[0])
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    script = next(text for attributes, text in page.scripts if not attributes)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_the_page_asks_the_network_for_nothing(runs):
    write_run_pages(runs[0])
    text = (runs[0] / "report.html").read_text()
    assert set(re.findall(r"https?://[^\s\"'<]+", text)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert not [a for tag, a in _page(runs[0]).tags if "src" in a or (tag == "link" and a["href"] != "data:,")]


# ---- audio


def test_audio_is_addressed_from_the_page_or_said_to_be_gone(write_run, tmp_path):
    sound = tmp_path / "some audio" / "a#1 ?.wav"
    sound.parent.mkdir()
    sound.write_bytes(b"RIFF")
    pairs = [(TEXT, TEXT)] * 3
    folder = write_run("org_base", pairs, rows={0: {"audio": str(sound)}, 1: {"audio": str(tmp_path / "gone.wav")}})
    write_run_pages(folder)
    audio = [it["a"] for it in sorted(_page(folder).data["examples"], key=lambda it: it["n"])]
    assert audio[0] == {"name": str(sound), "u": "../../some%20audio/a%231%20%3F.wav"}
    assert audio[1] == {"name": str(tmp_path / "gone.wav")}
    assert audio[2] == {"name": None}


def test_embedded_audio_is_the_file_once_and_within_the_limit(write_run, tmp_path):
    small, large, odd = tmp_path / "small.flac", tmp_path / "large.flac", tmp_path / "odd.sph"
    small.write_bytes(b"fLaC\x00\xff")
    large.write_bytes(bytes(5000))
    odd.write_bytes(b"NIST")
    files = {0: small, 1: small, 2: large, 3: odd}
    folder = write_run("org_base", [(TEXT, TEXT)] * 4, rows={i: {"audio": str(path)} for i, path in files.items()})
    write_run_pages(folder, PageOptions(embed_audio=True, embed_bytes=1000))
    page = _page(folder)
    audio = [it["a"] for it in sorted(page.data["examples"], key=lambda it: it["n"])]
    assert [it.get("k") for it in audio] == ["0", "0", None, None]
    assert audio[2]["u"].endswith("large.flac")
    sounds = [(attributes, text) for attributes, text in page.scripts if "data-sound" in attributes]
    assert [(a["data-type"], base64.b64decode(text)) for a, text in sounds] == [("audio/flac", small.read_bytes())]
    assert "Audio of 1 example is not embedded" in page.text


# ---- bad input


def test_a_cut_off_last_line_is_left_out_and_said(runs, tmp_path):
    path = runs[0] / "results.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    before = path.read_bytes()
    run = read_run(runs[0])
    assert [row.id for row in run.rows] == ["utt-0000", "utt-0001"]
    assert "last line (3) was cut off" in run.notes[0]
    assert "2 of the run's 3 examples" in run.notes[1]
    write_run_pages(runs[0])
    assert "was cut off" in _page(runs[0]).text
    assert path.read_bytes() == before, "a report changes no results"


def test_a_damaged_line_before_the_last_is_an_error(runs):
    path = runs[0] / "results.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + "{]\n" + lines[2])
    with pytest.raises(DatasetError, match=r"line 2 is not valid JSON.*wkt evaluate"):
        read_run(runs[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference": 7}, "reference is 7, expected a string"),
        ({"alignment": [{"type": "swap", "reference": [], "hypothesis": []}]}, "type 'swap'"),
        ({"alignment": [{"type": "equal", "reference": [1], "hypothesis": []}]}, "a word that is not text"),
        ({"alignment": ["equal"]}, "lacks type"),
    ],
)
def test_a_row_that_does_not_fit_the_schema_is_named(runs, change, message):
    path = runs[0] / "results.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], json.dumps({**json.loads(lines[1]), **change}), lines[2]]) + "\n")
    with pytest.raises(DatasetError, match=f"line 2.*{re.escape(message)}"):
        read_run(runs[0])


def test_of_rows_with_one_id_the_last_counts(runs):
    path = runs[0] / "results.jsonl"
    row = json.loads(path.read_text().splitlines()[0])
    with path.open("a") as file:
        file.write(json.dumps({**row, "hypothesis": "again"}) + "\n")
    assert read_run(runs[0]).rows[0].hypothesis == "again"
    assert len(read_run(runs[0]).rows) == 3


def test_what_is_no_run_says_what_to_pass(runs, tmp_path):
    with pytest.raises(DatasetError, match="does not exist"):
        read_run(tmp_path / "nothing")
    with pytest.raises(DatasetError, match=r"it holds runs, pass them: .*org_base-aaaaaaaa"):
        read_run(tmp_path / "runs")
    write_report(runs, tmp_path / "out")
    with pytest.raises(DatasetError, match=r"no results\.jsonl"):
        read_run(tmp_path / "out")
    (runs[0] / "report.json").unlink()
    with pytest.raises(DatasetError, match=r"not finished.*resumes it"):
        read_run(runs[0])


def test_the_same_run_twice_is_refused(runs, tmp_path):
    with pytest.raises(OptionsError, match=r"are the same run \(key aaaaaaaa\)"):
        write_report([runs[0], runs[0]], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_bundles_of_one_name_are_told_apart(write_run, tmp_path):
    first = write_run("org_base", [(TEXT, TEXT)], key="aaaaaaaa")
    second = write_run("org_base", [(TEXT, TEXT)], key="bbbbbbbb")
    written = write_report([first, second], tmp_path / "out")
    assert [run.report.name for run in written.runs] == ["org_base (aaaaaaaa)", "org_base (bbbbbbbb)"]
    assert all("another run is called org_base too" in note for note in written.notes)
    assert len(written.notes) == 2


def test_two_runs_of_one_bundle_are_told_apart_by_their_settings(write_run, tmp_path):
    backends = [
        BackendInfo("executor", "x", options={"long_form": form, "vad": "energy"}) for form in ("vad", "chunked")
    ]
    folders = [
        write_run("org_base", [(TEXT, TEXT)], key=key * 8, backend=it) for key, it in zip("ab", backends, strict=True)
    ]
    written = write_report(folders, tmp_path / "out")
    assert [run.report.name for run in written.runs] == ["long form vad", "long form chunked"]
    assert written.notes == ()
    other = write_run("org_tiny", [(TEXT, TEXT)], key="cccccccc")
    written = write_report([*folders, other], tmp_path / "three")
    names = [run.report.name for run in written.runs]
    assert names == ["org_base (long form vad)", "org_base (long form chunked)", "org_tiny"]


def test_what_was_heard_where_nobody_speaks_is_shown(write_run, tmp_path):
    clips = (NoSpeechClip("white_noise", 5.0, "<b>thanks for watching", 3), NoSpeechClip("silence", 5.0, "", 0))
    metrics = Metrics(0.0, 0.0, 0, 0, 0, 9, no_speech=NoSpeech(2, 1, 3, clips))
    folder = write_run("org_base", [(TEXT, TEXT)], metrics=metrics)
    write_run_pages(folder)
    text = _page(folder).text
    assert "Text of clips without speech white noise, 5.0 s: <b>thanks for watching" in text
    assert "silence, 5.0 s" not in text


def test_a_report_that_exists_is_kept_unless_forced(runs, tmp_path):
    target = tmp_path / "out"
    write_report(runs, target, page=PageOptions(title="first"))
    with pytest.raises(OptionsError, match="already exists; replace its report with force"):
        write_report(runs, target)
    (target / "notes.txt").write_text("mine")
    write_report(runs, target, page=PageOptions(title="second"), force=True)
    assert "second" in _page(target).text
    assert (target / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_text("x"), "is not a folder"),
        (lambda path: (path.mkdir(), (path / "thesis.doc").write_text("x")), "holds files but no report"),
        (lambda path: (path.mkdir(), (path / "results.jsonl").write_text("")), "whose report would be lost"),
    ],
)
def test_force_replaces_nothing_but_a_report(runs, tmp_path, make, message):
    target = tmp_path / "out"
    make(target)
    with pytest.raises(OptionsError, match=message):
        write_report(runs, target, force=True)


def test_a_report_that_fails_leaves_nothing(runs, tmp_path, monkeypatch):
    monkeypatch.setattr("whisperkit_tools.eval.reports.write.render_markdown", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(runs, tmp_path / "deep" / "out")
    assert list((tmp_path / "deep").iterdir()) == []
