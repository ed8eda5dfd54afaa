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
from tests.apache.test_apache import contents_of, get, handoff_path, stream_url
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


def test_the_keyboard_reaches_everything_in_order(page: Page) -> None:
    reached: list[str | None] = []
    for _ in range(5):
        page.browser.switch_to.active_element.send_keys(Keys.TAB)
        reached.append(page.browser.switch_to.active_element.get_attribute("id"))
    assert reached == ["prompt", "with-eventsource", "with-fetch", "stop", "output"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(page: Page, site: Apache, scheme: str) -> None:
    use_scheme(page.browser, scheme)
    page.press("with-fetch")
    page.wait_for("done")
    for selector in ("h1", "p", "textarea", "#with-fetch", "#output"):
        assert contrast_ratio(page.browser, selector) >= 4.5, (scheme, selector)
    if os.environ.get("STREAMING_DAEMON_SCREENSHOTS"):
        assert site.port
        IMAGES.mkdir(parents=True, exist_ok=True)
        page.browser.save_screenshot(str(IMAGES / f"example-page-{scheme}.png"))
