"""Makes the pictures of the page in docs/images/, light and dark, from a front that runs.

    python -m scripts.make_audio speech --seconds 6 --seed 4 --output build/speech.wav
    python -m scripts.make_screenshots http://127.0.0.1:8000/ --audio build/speech.wav

While the live tab is photographed, VISITORS ask the front's default model, so that there is something to see.

Needs Chromium with its driver (`make packages`) and the extras `test` (selenium) and `plot` (Pillow, which makes the
files small).
"""

# Selenium's own annotations leave out what its dictionaries and arguments hold.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import argparse
import importlib
import io
import json
import random
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError

from selenium.common.exceptions import WebDriverException
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
CHROMIUM, CHROMEDRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
WIDTH, HEIGHT, SCALE = 1040, 800, 1.5
WAIT_SECONDS_MAX = 60.0
LIVE_SECONDS = 12.0  # until the lines of the live tab can be seen
COLOURS = 256
VISITORS = 6
VISIT_SECONDS_MAX = 30.0
PAUSE_SECONDS_MAX = 1.0  # of a visitor between two questions
QUESTION = "Why can a daemon stream to a browser that never connected to it?"
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
)


class Photographer:
    """A browser before the page."""

    def __init__(self, browser: Chrome, url: str, folder: Path) -> None:
        self.browser = browser
        self._url = url
        self._folder = folder
        self._pillow: Any = importlib.import_module("PIL.Image")

    @property
    def url(self) -> str:
        """Where the front is."""
        return self._url

    def open(self, part: str) -> None:
        """One of the page's tabs, opened anew."""
        self.browser.get("about:blank")
        self.browser.get(f"{self._url}#{part}")

    def wait(self, is_so: Callable[[], bool]) -> None:
        """Until something is so. WebDriverException after WAIT_SECONDS_MAX."""
        WebDriverWait(self.browser, WAIT_SECONDS_MAX, poll_frequency=0.1).until(lambda _browser: is_so())

    def text(self, name: str) -> str:
        """Of the element with this id."""
        return self.browser.find_element(By.ID, name).text

    def take(self, name: str) -> None:
        """The same view twice, light and dark."""
        for scheme in ("light", "dark"):
            feature = {"name": "prefers-color-scheme", "value": scheme}
            self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
            time.sleep(0.3)  # the canvas is painted with the next frame
            picture = self._pillow.open(io.BytesIO(self.browser.get_screenshot_as_png())).convert("RGB")
            path = self._folder / f"page-{name}-{scheme}.png"
            picture.quantize(COLOURS, method=self._pillow.Quantize.FASTOCTREE).save(path, optimize=True)
            print(f"{path}: {path.stat().st_size // 1024} KiB")


def take_chat(page: Photographer) -> None:
    """A question with its answer."""
    page.open("chat")
    page.wait(lambda: page.text("server-state") == "Ready")
    page.browser.find_element(By.ID, "prompt").send_keys(QUESTION, Keys.ENTER)
    page.wait(lambda: bool(page.browser.find_elements(By.CSS_SELECTOR, ".answer[data-outcome='complete']")))
    page.take("chat")


def take_mel(page: Photographer, audio: Path) -> None:
    """The features of a file."""
    page.open("mel")
    page.browser.find_element(By.ID, "mel-file").send_keys(str(audio.resolve()))
    page.wait(lambda: page.text("mel-status").startswith("Complete"))
    page.take("mel")


def take_live(page: Photographer, seconds: float) -> None:
    """The numbers, after some seconds with visitors."""
    with visitors(page.url):
        page.open("live")
        page.wait(lambda: page.browser.find_element(By.ID, "live-numbers").is_displayed())
        time.sleep(seconds)
        page.take("live")


@contextmanager
def visitors(url: str) -> Generator[None]:
    """People who ask and read, again and again. Raises what one of them met."""
    gone = threading.Event()
    problems: list[Exception] = []

    def visit(seed: int) -> None:
        chance = random.Random(seed)
        try:
            while not gone.wait(chance.uniform(0, PAUSE_SECONDS_MAX)):
                ask(url)
        except (OSError, HTTPException) as problem:
            problems.append(problem)
            if isinstance(problem, HTTPError):
                problem.close()  # it is an answer, too

    threads = [threading.Thread(target=visit, args=(seed,)) for seed in range(VISITORS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        gone.set()
        for thread in threads:
            thread.join(VISIT_SECONDS_MAX)
    if problems:
        raise problems[0]


def ask(url: str) -> None:
    """One question to the default model, read to its end. Raises OSError, HTTPException."""
    asked = {"messages": [{"role": "user", "content": QUESTION}], "stream": True}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}v1/chat/completions", json.dumps(asked).encode(), headers)  # noqa: S310
    with urllib.request.urlopen(request, timeout=VISIT_SECONDS_MAX) as response:  # noqa: S310
        response.read()


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the pictures; 1 where the page does not do what is photographed."""
    parser = argparse.ArgumentParser(prog="python -m scripts.make_screenshots", description="Pictures of the page.")
    parser.add_argument("url", help="where the front is, as http://127.0.0.1:8000/")
    parser.add_argument("--audio", type=Path, help="audio for the picture of the mel tab; without it there is none")
    parser.add_argument("--output", type=Path, default=IMAGES, help="folder of the pictures (default: docs/images)")
    parser.add_argument(
        "--seconds", type=float, default=LIVE_SECONDS, help="of visitors for the picture of the live tab (default: 12)"
    )
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as profile:
        options = ChromeOptions()
        options.binary_location = CHROMIUM
        for option in (*OPTIONS, f"--user-data-dir={profile}"):
            options.add_argument(option)
        browser = Chrome(options=options, service=Service(executable_path=CHROMEDRIVER))
        try:
            size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": SCALE, "mobile": False}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            page = Photographer(browser, given.url, given.output)
            take_chat(page)
            if given.audio is not None:
                take_mel(page, given.audio)
            take_live(page, given.seconds)
        except WebDriverException as error:
            print(f"the page at {given.url} does not do what is photographed: {error.msg}", file=sys.stderr)
            return 1
        except (OSError, HTTPException) as error:
            print(f"a visitor of {given.url} got no answer: {error}", file=sys.stderr)
            return 1
        finally:
            browser.quit()
    return 0


if __name__ == "__main__":
    sys.exit(main())
