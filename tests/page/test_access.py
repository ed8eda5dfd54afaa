"""By keyboard, with a screen reader, on a dark screen or a small one: all works, and nothing is fetched elsewhere."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from selenium.webdriver.common.keys import Keys

from tests.browser import contrast_ratio, screen_of, use_preference, use_scheme

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.page.reader import Reader

pytestmark = pytest.mark.browser

PARTS = ("chat", "mel", "live")
TEXT_CONTRAST_MIN = 4.5  # WCAG 2.1, 1.4.3
EDGE_CONTRAST_MIN = 3.0  # WCAG 2.1, 1.4.11
TARGET_PIXELS_MIN = 24  # WCAG 2.2, 2.5.8


@pytest.fixture(params=["light", "dark"])
def scheme(reader: Reader, request: pytest.FixtureRequest) -> Iterator[str]:
    use_scheme(reader.browser, request.param)
    yield request.param
    use_scheme(reader.browser, "light")


@pytest.fixture
def narrow(reader: Reader) -> Iterator[Reader]:
    with screen_of(reader.browser, 360, 740):
        yield reader


@pytest.fixture
def narrow_staged(staged: Reader) -> Iterator[Reader]:
    with screen_of(staged.browser, 360, 740):
        yield staged


def test_the_keyboard_alone_is_enough(reader: Reader) -> None:
    assert reader.focused == "prompt"
    reader.type("hello", Keys.SHIFT + Keys.ENTER + Keys.NULL, "you", Keys.ENTER)
    reader.wait(lambda: reader.outcome == "complete")
    assert reader.run("return document.querySelector('.bubble').textContent") == "hello\nyou"
    assert reader.focused == "prompt"
    reader.allow_tokens(1_000_000)
    reader.type("on and on", Keys.TAB, Keys.TAB, Keys.TAB)
    assert reader.focused == "send"
    reader.type(Keys.SPACE)
    assert reader.focused == "stop", "the focus goes where the button went"
    reader.type(Keys.SPACE)
    reader.wait(lambda: reader.outcome == "stopped")
    assert reader.focused == "prompt"


def test_tabs_by_arrow_keys(reader: Reader) -> None:
    reader.find("tab-chat").send_keys(Keys.ARROW_RIGHT)
    assert reader.focused == "tab-mel"
    assert reader.find("panel-mel").is_displayed()
    assert not reader.find("panel-chat").is_displayed()
    reader.type(Keys.END)
    assert reader.focused == "tab-live"
    reader.type(Keys.ARROW_RIGHT)
    assert reader.focused == "tab-chat"
    selected = reader.run(
        "return [...document.querySelectorAll('[role=tab]')].map((tab) => [tab.ariaSelected, tab.tabIndex])"
    )
    assert selected == [["true", 0], ["false", -1], ["false", -1]]


def test_an_address_names_its_tab(reader: Reader) -> None:
    reader.open("live")
    assert reader.find("panel-live").is_displayed()


def test_the_keyboard_reaches_everything_on_the_mel_tab(reader: Reader) -> None:
    reader.find("tab-chat").send_keys(Keys.ARROW_RIGHT)
    reached: list[str | None] = []
    for _ in range(5):
        reader.tab()
        reached.append(reader.focused)
    assert reached == ["api-link", "mel-file", "mel-microphone", "mel-bins", "mel-normalisation"]


def test_the_focus_can_be_seen(reader: Reader, scheme: str) -> None:
    for name in ("tab-chat", "send", "model"):
        reader.find("prompt").click()
        reader.run("document.getElementById(arguments[0]).focus({ focusVisible: true })", name)
        style = reader.run(
            "const s = getComputedStyle(document.activeElement); return [s.outlineStyle, s.outlineWidth]"
        )
        assert style == ["solid", "3px"], (scheme, name)
    reader.run("document.getElementById('prompt').focus({ focusVisible: true })")
    assert reader.run("return getComputedStyle(document.querySelector('.box')).outlineStyle") == "solid"


@pytest.mark.parametrize("part", PARTS)
def test_everything_has_a_name(reader: Reader, part: str) -> None:
    reader.open(part)
    nameless = reader.run(
        """
        const textOf = (id) => document.getElementById(id).textContent.trim();
        const named = (element) => element.ariaLabel || element.textContent.trim()
          || element.labels?.[0]?.textContent.trim()
          || element.getAttribute("aria-labelledby")?.split(" ").map(textOf)[0];
        return [...document.querySelectorAll(
          "button, a, input, select, textarea, canvas, progress, dialog, svg[role], "
          + "[role=tabpanel], [role=region], [role=log], [tabindex='0']"
        )].filter((element) => !named(element)).map((element) => element.outerHTML);
        """
    )
    assert nameless == []
    fields = reader.run(
        """
        return [...document.querySelectorAll("input, select, textarea")]
          .filter((field) => field.labels.length === 0).map((field) => field.id);
        """
    )
    assert fields == []
    assert reader.run("return document.documentElement.lang") == "en"


def test_ids_are_single_and_references_lead_somewhere(reader: Reader) -> None:
    ids, references = reader.run(
        """
        return [[...document.querySelectorAll("[id]")].map((e) => e.id),
          ["for", "aria-controls", "aria-labelledby", "aria-describedby"].flatMap(
            (name) => [...document.querySelectorAll(`[${name}]`)].map((e) => e.getAttribute(name)))];
        """
    )
    assert len(ids) == len(set(ids))
    assert set(references) <= set(ids)


def test_headings_leave_no_level_out(reader: Reader) -> None:
    levels = reader.run("return [...document.querySelectorAll('h1, h2, h3, h4')].map((e) => Number(e.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in pairwise(levels))


def test_a_screen_reader_hears_the_beginning_and_the_end_only(reader: Reader) -> None:
    reader.run(
        """
        window.heard = [];
        new MutationObserver(() => window.heard.push(document.getElementById("chat-status").textContent))
          .observe(document.getElementById("chat-status"), { childList: true, characterData: true, subtree: true });
        """
    )
    reader.allow_tokens(500)
    reader.ask_to_the_end("hello")
    assert reader.run("return window.heard") == ["The answer begins.", "The answer is complete: 500 tokens."]
    live = reader.run(
        "return [...document.querySelectorAll('.answer')].at(-1).closest('[aria-live]').getAttribute('aria-live')"
    )
    assert live == "off"
    assert reader.run("return [...document.querySelectorAll('.answer')].at(-1).ariaBusy") == "false"


def test_text_stands_out(reader: Reader, scheme: str) -> None:
    reader.ask_to_the_end("hello")
    chat = ["h1", "#tab-chat", "#tab-mel", "#server-state", ".bubble", ".who", ".text", "dt", "dd", ".note",
            "#send", "#new-chat", "#model", "#prompt-help", "summary"]  # fmt: skip
    found = {selector: contrast_ratio(reader.browser, selector) for selector in chat}
    reader.press("tab-mel")
    mel = ["h2", ".lead", "label.button", "#mel-microphone", "#drop-help", "#mel-status", "#mel-bins", "#mel-frames"]
    found |= {selector: contrast_ratio(reader.browser, selector) for selector in mel}
    reader.press("tab-live")
    reader.wait(lambda: reader.find("live-numbers").is_displayed())
    live = ["#live-pause", ".card h3", ".card .value", ".card .detail", "#reasons th", "caption", "#panel-live a"]
    found |= {selector: contrast_ratio(reader.browser, selector) for selector in live}
    assert min(found.values()) >= TEXT_CONTRAST_MIN, (scheme, found)


@pytest.mark.parametrize("wanted", ["light", "dark"])
def test_a_problem_stands_out(staged: Reader, wanted: str) -> None:
    use_scheme(staged.browser, wanted)
    staged.ask_to_the_end("error event")
    found = {selector: contrast_ratio(staged.browser, selector) for selector in (".problem", ".link")}
    use_scheme(staged.browser, "light")
    assert min(found.values()) >= TEXT_CONTRAST_MIN, found


def test_edges_of_fields_and_lines_stand_out(reader: Reader, scheme: str) -> None:
    # As text they are measured by the same function: an element is coloured as the edge is, on the panel's ground.
    reader.run(
        """
        for (const name of ["edge", "action", "wrong", "second", "good"]) {
          const element = document.createElement("span");
          element.id = `sample-${name}`;
          element.style.color = `var(--${name})`;
          element.textContent = name;
          document.querySelector(".box").append(element);
        }
        """
    )
    for name in ("edge", "action", "wrong", "second", "good"):
        assert contrast_ratio(reader.browser, f"#sample-{name}") >= EDGE_CONTRAST_MIN, (scheme, name)


def test_light_and_dark_differ(reader: Reader) -> None:
    grounds: list[str] = []
    for scheme in ("dark", "light"):
        use_scheme(reader.browser, scheme)
        grounds.append(reader.run("return getComputedStyle(document.body).backgroundColor"))
    assert grounds == ["rgb(15, 19, 24)", "rgb(246, 247, 249)"]


def test_a_small_screen_is_wide_enough_for_a_long_word(narrow_staged: Reader) -> None:
    word = "many" * 40
    narrow_staged.ask_to_the_end(f"a word of {word} letters")
    assert word in narrow_staged.answer
    check_width(narrow_staged)


@pytest.mark.parametrize("part", ["mel", "live"])
def test_a_small_screen_is_wide_enough(narrow: Reader, part: str) -> None:
    narrow.press(f"tab-{part}")
    if part == "live":
        narrow.wait(lambda: narrow.find("live-numbers").is_displayed())
    check_width(narrow)


def check_width(narrow: Reader) -> None:
    assert narrow.run("return innerWidth") == 360
    wide = narrow.run(
        """
        return [...document.querySelectorAll("body *")].filter((element) => {
          const box = element.getBoundingClientRect();
          return box.width > 0 && (box.right > innerWidth + 1 || box.left < -1)
            && !element.closest(".hidden, .skip, .table") && element.id !== "main";
        }).map((element) => element.outerHTML.slice(0, 120));
        """
    )
    assert wide == []
    assert narrow.run("return document.documentElement.scrollWidth") == 360
    small = narrow.run(
        """
        return [...document.querySelectorAll("button, select, summary, input:not(.hidden)")]
          .map((element) => [element.id || element.textContent, element.getBoundingClientRect()])
          .filter(([, box]) => box.width > 0 && (box.width < arguments[0] || box.height < arguments[0]))
          .map(([name]) => name);
        """,
        TARGET_PIXELS_MIN,
    )
    assert small == []


def test_whoever_wants_less_motion_gets_none(staged: Reader) -> None:
    staged.ask("silent")
    assert staged.run("return document.getAnimations().length") == 1, "the dot that says that an answer is awaited"
    use_preference(staged.browser, "prefers-reduced-motion", "reduce")
    moving = staged.run("return document.getAnimations().length")
    use_preference(staged.browser, "prefers-reduced-motion", "no-preference")
    assert moving == 0


def test_nothing_is_fetched_from_elsewhere(reader: Reader) -> None:
    for part in PARTS:
        reader.press(f"tab-{part}")
    reader.wait(lambda: reader.find("live-numbers").is_displayed())
    fetched = reader.run("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert {name for name in fetched if not name.startswith(reader.url)} == set()
    assert any(name.endswith("/static/app.js") for name in fetched)
    # Addresses that stand in the files, but would be fetched later on.
    texts = reader.run(
        "return Promise.all(arguments[0].map((name) => fetch(name).then((r) => r.text())))", fetched[:20]
    )
    assert not [text for text in texts if "https://" in text.replace("from https://", "")]
