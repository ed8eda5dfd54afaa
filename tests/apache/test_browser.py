"""The example page in headless Chromium: what a reader sees, compared with what was sent.

With STREAMING_DAEMON_SCREENSHOTS=1 the page's pictures in docs/images/ are made anew.
"""

# Selenium's own annotations leave out what its dictionaries and arguments hold.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from http.client import HTTPConnection

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from tests.apache.environment import REPOSITORY, Apache, running_daemon
from tests.apache.test_apache import MESSAGE_COUNT, contents_of, get, handoff_path, stream_url
from tests.browser import contrast_ratio, running_chromium, use_scheme

pytestmark = pytest.mark.browser

IMAGES = REPOSITORY / "docs" / "images"
# Chromium asks again three seconds after an EventSource's stream ended, unless the page closed it.
RECONNECT_SECONDS = 3.0
WAIT_SECONDS_MAX = 20.0

WAYS = ("with-eventsource", "with-fetch")


@pytest.fixture(scope="module")
def browser(apache: Apache, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    assert apache.port, "Apache stands before the browser, and outlives it"
    with running_chromium(tmp_path_factory.mktemp("chromium")) as driver:
        yield driver


class Page:
    """The example page as a reader uses it."""

    def __init__(self, browser: Chrome, apache: Apache) -> None:
        self.browser = browser
        browser.get(f"{apache.base_url}/index.html")

    def ask_at(self, address: str) -> None:
        """Let the page stream from another address than stream.php."""
        self.browser.execute_script("document.getElementById('form').action = arguments[0]", address)

    def type_prompt(self, prompt: str) -> None:
        field = self.browser.find_element(By.ID, "prompt")
        field.clear()
        field.send_keys(prompt)

    def set_prompt(self, prompt: str) -> None:
        """As if pasted: typing thousands of characters takes seconds."""
        script = (
            "const field = document.getElementById('prompt');"
            "field.value = arguments[0]; field.dispatchEvent(new Event('input'))"
        )
        self.browser.execute_script(script, prompt)

    @property
    def prompt_problem(self) -> str:
        return str(self.browser.find_element(By.ID, "prompt").get_property("validationMessage"))

    def press(self, button: str) -> None:
        self.browser.find_element(By.ID, button).click()

    def wait_for(self, state: str) -> None:
        WebDriverWait(self.browser, WAIT_SECONDS_MAX, poll_frequency=0.02).until(lambda _browser: self.state == state)

    def wait_for_text(self) -> None:
        WebDriverWait(self.browser, WAIT_SECONDS_MAX, poll_frequency=0.02).until(lambda _browser: self.text != "")

    @property
    def state(self) -> str | None:
        return self.browser.find_element(By.ID, "status").get_attribute("data-state")

    @property
    def status(self) -> str:
        return self.browser.find_element(By.ID, "status").text

    def is_shown(self, button: str) -> bool:
        found = self.browser.find_element(By.ID, button)
        return found.is_displayed() and found.is_enabled()

    @property
    def focused(self) -> str | None:
        return self.browser.switch_to.active_element.get_attribute("id")

    def press_tab(self) -> str | None:
        self.browser.switch_to.active_element.send_keys(Keys.TAB)
        return self.focused

    def order_of_keyboard(self, count: int) -> list[str | None]:
        """What Tab reaches from the prompt on, in order."""
        self.browser.execute_script("document.getElementById('prompt').focus()")
        return [self.focused, *(self.press_tab() for _ in range(count - 1))]

    @property
    def lines(self) -> list[str]:
        """The answer as it is laid out."""
        return self.browser.find_element(By.ID, "output").text.split("\n")

    @property
    def text(self) -> str:
        """The answer with every space and line break, which WebElement.text would tidy up."""
        return str(self.browser.find_element(By.ID, "output").get_property("textContent"))


@pytest.fixture
def page(browser: Chrome, apache: Apache) -> Page:
    return Page(browser, apache)


def sent_text(apache: Apache, prompt: str) -> str:
    """What the daemon sends for this prompt, read without a browser."""
    return "".join(contents_of(get(apache, stream_url(apache, prompt).removeprefix(apache.base_url))[1]))


@pytest.mark.parametrize("way", WAYS)
def test_the_page_shows_what_was_sent_and_asks_once(page: Page, site: Apache, way: str) -> None:
    prompt = f'{way}: Grüße "world" <b>&amp;'
    expected = sent_text(site, prompt)
    before = len(site.requests_logged("/stream.php"))
    page.type_prompt(prompt)
    page.press(way)
    page.wait_for("done")
    assert page.text == expected
    time.sleep(RECONNECT_SECONDS + 1.0)
    method = {"with-eventsource": "GET", "with-fetch": "POST"}[way]
    assert site.requests_logged("/stream.php")[before:] == [f"{method} /stream.php 200"]
    assert page.text == expected


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("script", "reason"), [("error", "the model went away"), ("truncated", "broke off")])
def test_a_broken_stream_is_shown_as_broken_and_asked_for_once(
    page: Page, apache: Apache, way: str, script: str, reason: str
) -> None:
    page.ask_at(f"scripted.php?script={script}")
    before = len(apache.requests_logged("/scripted.php"))
    page.press(way)
    page.wait_for("failed")
    assert page.text == "Half an "
    assert reason in page.status
    time.sleep(RECONNECT_SECONDS + 1.0)
    assert len(apache.requests_logged("/scripted.php")) - before == 1


@pytest.mark.parametrize("way", WAYS)
def test_events_in_pieces_are_put_together(page: Page, way: str) -> None:
    page.ask_at("scripted.php?script=pieces")
    page.press(way)
    page.wait_for("done")
    assert page.text == "grüße all"


def test_the_daemons_503_is_shown(page: Page, apache: Apache) -> None:
    path = apache.socket_folder / "browser-full.sock"
    with running_daemon(path, "--max-connections", "1", delay_ms=5000):
        held = HTTPConnection("127.0.0.1", apache.port, timeout=30)
        held.request("GET", handoff_path(path))
        # Kept: the answer owns the connection, and a client that is collected is a client that has left.
        answer = held.getresponse()
        assert answer.status == 200
        page.ask_at(handoff_path(path))
        page.press("with-fetch")
        page.wait_for("failed")
        shown_by_fetch = page.status
        page.press("with-eventsource")
        page.wait_for("failed")
        answer.close()
        held.close()
    assert shown_by_fetch.startswith("HTTP 503: ")
    assert page.text == ""


def test_the_daemons_429_is_shown(page: Page, apache: Apache) -> None:
    path = apache.socket_folder / "browser-limited.sock"
    configuration = path.with_suffix(".toml")
    configuration.write_text("[limits]\nrequests_per_minute_per_user = 1\n")
    with running_daemon(path, "--config", str(configuration)):
        page.ask_at(handoff_path(path, data='{"user_id":7}'))
        page.press("with-fetch")
        page.wait_for("done")
        page.press("with-fetch")
        page.wait_for("failed")
    assert page.status.startswith("HTTP 429: ")


def test_apaches_503_is_shown_while_the_daemon_is_down(page: Page, apache: Apache) -> None:
    page.ask_at(handoff_path(apache.socket_folder / "nobody-for-browser.sock"))
    page.press("with-fetch")
    page.wait_for("failed")
    assert page.status == "HTTP 503: Service Unavailable"


@pytest.mark.parametrize("way", WAYS)
def test_stop_ends_the_stream_with_the_keyboard_alone(page: Page, apache: Apache, way: str) -> None:
    path = apache.socket_folder / f"stopped-{way}.sock"
    with running_daemon(path, delay_ms=300):
        page.ask_at(handoff_path(path, data='{"user_id":1,"prompt":"stop me"}'))
        page.browser.find_element(By.ID, way).send_keys(Keys.ENTER)
        page.wait_for_text()
        page.browser.find_element(By.ID, "stop").send_keys(Keys.SPACE)
        page.wait_for("stopped")
        text = page.text
        time.sleep(1.0)
        assert page.text == text
        assert page.state == "stopped"


def test_messages_have_lines_of_their_own_until_that_is_switched_off(page: Page, site: Apache) -> None:
    assert site.port
    page.press("with-fetch")
    page.wait_for("done")
    assert len(page.lines) == MESSAGE_COUNT
    assert page.lines[12] == "This is message 13 of 18."
    page.press("lines")
    assert len(page.lines) < MESSAGE_COUNT
    assert "This is message 13 of 18.This is message 14 of 18." in "".join(page.lines)


@pytest.mark.parametrize(
    ("prompt", "count"), [("x" * 8192, 8192), ("ü" * 4096, 8192), ("😀" * 2048, 8192), ("ü" * 4095 + "x\ny", 8193)]
)
def test_the_prompt_is_counted_in_bytes_as_stream_php_counts_it(
    page: Page, site: Apache, prompt: str, count: int
) -> None:
    before = len(site.requests_logged("/stream.php"))
    page.set_prompt(prompt)
    assert page.browser.find_element(By.ID, "prompt-length").text.startswith(f"{count} of 8192 bytes.")
    page.press("with-fetch")
    if count <= 8192:
        page.wait_for("done")
    else:
        assert page.state == "idle"
        assert "8193 bytes are too many" in page.prompt_problem
    assert len(site.requests_logged("/stream.php")) - before == (count <= 8192)


def test_a_prompt_too_long_for_an_address_is_left_to_fetch(page: Page, site: Apache) -> None:
    before = len(site.requests_logged("/stream.php"))
    # An umlaut has six characters in an address.
    room = 8190 - len("GET /stream.php?prompt= HTTP/1.1")
    page.set_prompt("ü" * (room // 6) + "x" * (room % 6))
    page.press("with-eventsource")
    page.wait_for("done")
    page.set_prompt("ü" * (room // 6) + "x" * (room % 6 + 1))
    page.press("with-eventsource")
    page.wait_for("failed")
    assert "fetch has more room" in page.status
    page.press("with-fetch")
    page.wait_for("done")
    assert site.requests_logged("/stream.php")[before:] == ["GET /stream.php 200", "POST /stream.php 200"]


def test_enter_sends_by_the_way_that_was_used_last_and_shift_enter_does_not(page: Page, site: Apache) -> None:
    before = len(site.requests_logged("/stream.php"))
    page.type_prompt("one" + Keys.SHIFT + Keys.ENTER + Keys.SHIFT + "two")
    assert page.state == "idle"
    page.type_prompt("three" + Keys.ENTER)
    page.wait_for("done")
    page.press("with-eventsource")
    page.wait_for("done")
    page.type_prompt("four" + Keys.ENTER)
    page.wait_for("streaming")
    page.wait_for("done")
    assert "Prompt: four" in page.text
    methods = [line.split(" ")[0] for line in site.requests_logged("/stream.php")[before:]]
    assert methods == ["POST", "GET", "GET"]


@pytest.mark.parametrize("way", WAYS)
def test_stop_is_there_while_streaming_and_try_again_after_that(page: Page, apache: Apache, way: str) -> None:
    path = apache.socket_folder / f"again-{way}.sock"
    assert (page.is_shown("stop"), page.is_shown("retry")) == (False, False)
    with running_daemon(path, delay_ms=300):
        page.ask_at(handoff_path(path, data='{"user_id":1,"prompt":"again"}'))
        page.press(way)
        page.wait_for_text()
        assert (page.is_shown("stop"), page.is_shown("retry")) == (True, False)
        page.browser.find_element(By.ID, "stop").send_keys(Keys.SPACE)
        page.wait_for("stopped")
        assert (page.is_shown("stop"), page.is_shown("retry"), page.focused) == (False, True, "retry")
    page.browser.find_element(By.ID, "retry").send_keys(Keys.SPACE)
    page.wait_for("failed")
    assert (page.is_shown("stop"), page.is_shown("retry"), page.focused) == (False, True, "retry")
    with running_daemon(path, delay_ms=1):
        page.browser.find_element(By.ID, "retry").send_keys(Keys.SPACE)
        page.wait_for("done")
    assert (page.is_shown("stop"), page.is_shown("retry"), page.focused) == (False, False, "prompt")
    assert "This is message 17 of 18." in page.text


def test_the_keyboard_reaches_everything_in_order(page: Page, apache: Apache) -> None:
    path = apache.socket_folder / "keyboard.sock"
    buttons = ["prompt", "with-eventsource", "with-fetch"]
    assert page.press_tab() == "prompt"
    assert page.order_of_keyboard(5) == [*buttons, "output", "lines"]
    with running_daemon(path, delay_ms=1000):
        page.ask_at(handoff_path(path))
        page.press("with-fetch")
        page.wait_for_text()
        assert page.order_of_keyboard(6) == [*buttons, "stop", "output", "lines"]
        page.press("stop")
    assert page.order_of_keyboard(6) == [*buttons, "retry", "output", "lines"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(page: Page, site: Apache, scheme: str) -> None:
    use_scheme(page.browser, scheme)
    page.press("with-fetch")
    page.wait_for("done")
    for selector in ("h1", "p", "#prompt-length", "textarea", "#with-fetch", "#stop", "#output", ".choice"):
        assert contrast_ratio(page.browser, selector) >= 4.5, (scheme, selector)
    if os.environ.get("STREAMING_DAEMON_SCREENSHOTS"):
        assert site.port
        IMAGES.mkdir(parents=True, exist_ok=True)
        page.browser.save_screenshot(str(IMAGES / f"example-page-{scheme}.png"))
