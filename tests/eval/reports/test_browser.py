"""`report.html` in a real browser: what it shows, sorts, filters and plays, by mouse and by keyboard."""

import shutil
import time
import wave

import pytest

from whisperkit_tools.eval.reports.html import PageOptions
from whisperkit_tools.eval.reports.write import write_report
from whisperkit_tools.eval.schema import Bucket, RowSegment

TEXT = "the quick brown fox jumps over the lazy dog"
LONG = " ".join(f"word{i}" for i in range(400))
HOSTILE = '</script><script>window.hacked=1</script><img src=x onerror="window.hacked=1">'
ARABIC = "والقمر شاحب من التعب"


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no chromium on this machine: the report is not tested in a browser")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        )
        yield browser
        browser.close()


@pytest.fixture
def sound(tmp_path):
    path = tmp_path / "a sound.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(bytes(2 * 16_000 * 5))
    return path


@pytest.fixture
def folder(write_run, sound, tmp_path):
    """Two runs over examples of each kind."""
    pairs = [
        (TEXT, TEXT.replace("fox", "box").replace("quick ", "") + " indeed"),
        (TEXT, TEXT),
        (HOSTILE, "<b>bold</b>\u202e and so on"),
        (ARABIC, ARABIC.replace("شاحب", "صاحب")),
        (LONG, LONG.replace("word200", "wort").replace("word350 ", "")),
        (TEXT, ""),
    ]
    phrases = tuple(RowSegment(f"word{i} word{i + 1}", i / 2, i / 2 + 1) for i in range(0, 400, 2))
    rows = {0: {"audio": str(sound)}, 4: {"audio": str(sound), "segments": phrases}}
    failed = {5: {"error": "the audio ends early", "alignment": (), "wer": None}}
    parts = {"by_speaker": tuple(Bucket(f"s{i}", 2, 9.0, 9, i / 10) for i in range(3))}
    base = write_run("org_base", pairs, key="aaaaaaaa", rows=rows | failed, **parts)
    better = [(reference, TEXT if i == 0 else hypothesis) for i, (reference, hypothesis) in enumerate(pairs)]
    better[1] = (TEXT, TEXT.replace("dog", "dogs"))
    small = write_run("org_small", better, key="bbbbbbbb", size_bytes=48_000_000, rows=rows | failed, **parts)
    write_report([base, small], tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def show(browser):
    """Open a report; afterwards the page must have logged nothing and asked the network for nothing."""
    pages, complaints = [], []

    def open_page(folder, **options):
        page = browser.new_page(**options)
        page.set_default_timeout(60_000)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url) if request.url.startswith("http") else None)
        page.goto((folder / "report.html").as_uri())
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        assert page.evaluate("window.hacked") is None
        page.close()
    assert complaints == []


def _wait(page, expression):
    """Playwright's own waiting evaluates text inside the page, which the page's policy forbids."""
    end = time.monotonic() + 60
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(50)


def _ids(page):
    return page.locator("#list .example").evaluate_all("items => items.map(item => item.dataset.id)")


def _names(page):
    return page.locator("#bundles tbody .run-name").all_inner_texts()


def test_differences_are_marked_in_both_texts(show, folder):
    page = show(folder)
    page.select_option("#run", "0")
    page.select_option("#beside", "")
    sides = page.locator('.example[data-id="utt-0000"] .side')
    reference, hypothesis = sides.nth(0), sides.nth(1)
    assert reference.locator("mark").all_inner_texts() == ["fox"]
    assert reference.locator("del").all_inner_texts() == ["quick"]
    assert hypothesis.locator("mark").all_inner_texts() == ["box"]
    assert hypothesis.locator("ins").all_inner_texts() == ["indeed"]
    assert hypothesis.locator(".gone").get_attribute("aria-label") == "missing: quick"
    assert hypothesis.locator(".words").inner_text() == "the −1 brown box jumps over the lazy dog indeed"
    styles = "node => [getComputedStyle(node).textDecorationLine, getComputedStyle(node, '::before').content]"
    assert reference.locator("mark").evaluate(styles)[0] == "underline", "not by colour alone"
    assert reference.locator("del").evaluate(styles)[0] == "line-through"
    assert hypothesis.locator("ins").evaluate(styles)[1] == '"+"'
    hypothesis.locator("mark").hover()
    assert reference.locator("mark.pair").count() == 1


def test_hostile_text_is_shown_as_text(show, folder):
    page = show(folder)
    page.select_option("#run", "0")
    page.select_option("#beside", "")
    item = page.locator('.example[data-id="utt-0002"]')
    item.get_by_role("button", name="As written").click()
    assert HOSTILE in item.locator(".written").inner_text()
    assert "<b>bold</b>[U+202E]" in item.locator(".side").nth(1).inner_text()
    assert page.locator("#list b:has-text('bold')").count() == 0
    arabic = page.locator('.example[data-id="utt-0003"] .words').first
    assert arabic.evaluate("node => getComputedStyle(node).direction") == "rtl"


def test_the_table_sorts_by_mouse_and_keyboard(show, folder):
    page = show(folder)
    assert _names(page) == ["org_base", "org_small"]
    page.get_by_role("button", name="Size MB").click()
    assert _names(page) == ["org_small", "org_base"]
    assert page.locator("#bundles th[aria-sort=ascending]").inner_text().startswith("Size")
    page.keyboard.press("Enter")
    assert _names(page) == ["org_base", "org_small"]
    page.get_by_role("button", name="QoI %").click()
    assert _names(page) == ["org_small", "org_base"], "what is not known stands last"


def test_search_and_filters_narrow_the_list(show, folder):
    page = show(folder)
    assert "5 of 6" not in page.locator("#found").inner_text()
    page.select_option("#show", "all")
    assert page.locator("#found").inner_text() == "6 of 6 examples"
    page.fill("#search", "LAZY dogs")
    _wait(page, "document.getElementById('found').textContent.startsWith('1 of')")
    assert _ids(page) == ["utt-0001"]
    page.reload()
    assert page.input_value("#search") == "LAZY dogs", "the view stands in the address"
    assert _ids(page) == ["utt-0001"]
    page.keyboard.press("/")
    page.keyboard.press("Escape")
    for value, expected in (("regressed", ["utt-0001"]), ("improved", ["utt-0000"]), ("failed", ["utt-0005"])):
        page.select_option("#show", value)
        assert _ids(page) == expected
    page.fill("#search", "nobody said this")
    page.wait_for_selector(".nothing")


def test_figures_lead_to_their_examples(show, folder):
    page = show(folder)
    page.locator("button[data-change=regressed]").click()
    assert _ids(page) == ["utt-0001"]
    assert "1 more error" in page.locator(".example .worse").inner_text()
    page.locator("button[data-speaker=s1]").click()
    assert page.input_value("#speaker") == "s1"
    assert sorted(_ids(page)) == ["utt-0001", "utt-0004"]


def test_orders(show, folder):
    page = show(folder)
    page.select_option("#show", "all")
    page.select_option("#order", "dataset")
    assert _ids(page) == [f"utt-{i:04d}" for i in range(6)]
    page.select_option("#order", "duration")
    assert _ids(page)[0] == "utt-0005"
    page.select_option("#order", "change")
    assert _ids(page)[0] == "utt-0001"


def test_a_long_text_is_shown_as_passages_that_lead_into_the_audio(show, folder):
    page = show(folder)
    item = page.locator('.example[data-id="utt-0004"]')
    passages = item.locator(".passage")
    assert passages.count() == 2
    assert passages.nth(0).locator("mark").first.inner_text() == "word200"
    assert "word150" not in passages.all_inner_texts()[0]
    passages.nth(0).get_by_role("button", name="about").click()
    # Word 194 begins the passage; two words are said in a second.
    assert passages.nth(0).locator("button").get_attribute("data-seek") == "97"


@pytest.mark.parametrize("embed", [False, True])
def test_audio_plays(show, write_run, sound, tmp_path, embed):
    pairs = [(TEXT, TEXT.replace("fox", "box")), (TEXT, "dog")]
    run = write_run("org_base", pairs, rows={i: {"audio": str(sound)} for i in range(2)})
    write_report([run], tmp_path / "one", page=PageOptions(embed_audio=embed))
    if embed:
        sound.unlink()
    page = show(tmp_path / "one")
    page.locator(".example").first.focus()
    page.keyboard.press("p")
    playing = "[...document.querySelectorAll('audio')].map(one => !one.paused && one.currentTime > 0)"
    _wait(page, f"{playing}[0]")
    assert page.evaluate("document.querySelector('audio').duration") == pytest.approx(5, abs=0.1)
    page.evaluate("document.querySelectorAll('audio')[1].play()")
    _wait(page, f"{playing}[1]")
    assert page.evaluate("document.querySelector('audio').paused"), "one at a time"


def test_the_keyboard_goes_through_the_examples(show, folder):
    page = show(folder)
    page.keyboard.press("j")
    page.keyboard.press("j")
    second = page.evaluate("document.activeElement.dataset.id")
    page.keyboard.press("k")
    assert [page.evaluate("document.activeElement.dataset.id"), second] == _ids(page)[:2]
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.type("jpk/")
    assert page.input_value("#search") == "jpk/", "letters are letters in the search"
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    page.reload()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"


def test_light_and_dark(show, folder):
    paper = "getComputedStyle(document.body).backgroundColor"
    page = show(folder, color_scheme="dark")
    dark = page.evaluate(paper)
    page.locator("#theme").click()
    light = page.evaluate(paper)
    assert (dark, light) == ("rgb(18, 20, 22)", "rgb(252, 252, 251)")
    page.reload()
    assert page.evaluate(paper) == light, "the choice is kept"
    page.emulate_media(media="print", color_scheme="dark")
    assert page.locator(".tools").is_hidden()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_contrast(show, folder, theme):
    """WCAG AA: 4.5 to 1 for all text that is not large, against the ground it stands on."""
    page = show(folder, color_scheme=theme)
    assert page.evaluate(CONTRAST) == []


CONTRAST = """() => {
  const channels = (text) => {
    const found = text.match(/[\\d.]+/g).map(Number);
    const scale = text.startsWith("color(") ? 255 : 1;
    return [...found.slice(0, 3).map((v) => scale * v), found[3] ?? 1];
  };
  const linear = (v) => ((v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const colour = channels(getComputedStyle(node).backgroundColor);
      if (colour[3] > 0.5) return colour;
    }
    return [255, 255, 255];
  };
  const bad = [];
  for (const node of document.querySelectorAll("main *")) {
    const hasText = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
    if (!hasText || !node.checkVisibility()) continue;
    const style = getComputedStyle(node);
    const ink = channels(node.closest("svg") ? style.fill : style.color);
    const [x, y] = [luminance(ink), luminance(ground(node))];
    const ratio = (Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05);
    if (ratio < 4.5) bad.push(`${node.tagName}.${node.className} ${ratio.toFixed(2)} ${node.textContent.slice(0, 30)}`);
  }
  return bad;
}"""


def test_a_phone_shows_all_without_scrolling_sideways(show, folder):
    page = show(folder, viewport={"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    boxes = page.locator('.example[data-id="utt-0000"] .side').evaluate_all(
        "sides => sides.map(side => side.getBoundingClientRect().left)"
    )
    assert len(boxes) == 3
    assert len(set(boxes)) == 1, "one below the other"


def test_every_control_has_a_name(show, folder):
    page = show(folder)
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button, select, input, audio')].filter(node => "
        "!(node.textContent.trim() && node.tagName === 'BUTTON') && !node.labels?.length && !node.ariaLabel)"
        ".map(node => node.outerHTML)"
    )
    assert unnamed == []


@pytest.mark.slow
def test_thousands_of_examples_stay_usable(show, write_run, tmp_path):
    run = write_run("org_base", [(TEXT, TEXT.replace("fox", f"box{i}")) for i in range(5000)])
    write_report([run], tmp_path / "out")
    page = show(tmp_path / "out")
    assert page.locator(".example").count() < 200, "the others are put on the page when they are asked for"
    page.fill("#search", "box4999")
    _wait(page, "document.getElementById('found').textContent === '1 of 5,000 examples'")
    assert _ids(page) == ["utt-4999"]
    page.fill("#search", "")
    _wait(page, "document.getElementById('found').textContent === '5,000 of 5,000 examples'")
    before = page.locator(".example").count()
    page.locator("#more").click()
    _wait(page, f"document.querySelectorAll('.example').length > {before}")
