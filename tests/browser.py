"""Headless Chromium for the tests, driven by selenium, and how well text can be read in it."""

# Selenium's own annotations leave out what its dictionaries and arguments hold.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

from tests.apache.environment import CHROMEDRIVER, CHROMIUM

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

# No sandbox: the tests may run as root, and show only pages of our own. The rest keeps Chromium off the network: it
# would look up its maker's hosts at every start.
CHROMIUM_OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=900,900",
    "--force-device-scale-factor=2",
)


@contextmanager
def running_chromium(profile: Path, *options: str) -> Generator[Chrome]:
    """A browser with `profile`, a folder of its own, and what it logs kept for `get_log("browser")`."""
    chosen = ChromeOptions()
    chosen.binary_location = str(CHROMIUM)
    for option in (*CHROMIUM_OPTIONS, *options, f"--user-data-dir={profile}"):
        chosen.add_argument(option)
    chosen.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # The driver's path is given, so that selenium looks for no other and downloads none.
    driver = Chrome(options=chosen, service=Service(executable_path=str(CHROMEDRIVER)))
    try:
        yield driver
    finally:
        driver.quit()


def use_scheme(browser: Chrome, scheme: str) -> None:
    """As a reader has it who asked the system for `light` or `dark`."""
    use_preference(browser, "prefers-color-scheme", scheme)


def use_preference(browser: Chrome, name: str, value: str) -> None:
    """A media feature as a reader has chosen it; it takes the place of those given before."""
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": name, "value": value}]})


@contextmanager
def screen_of(browser: Chrome, width: int, height: int, *, scale: float = 2) -> Generator[None]:
    """A screen of so many CSS pixels, smaller than a browser's window can be."""
    size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        yield
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def contrast_ratio(browser: Chrome, selector: str) -> float:
    """The ratio of WCAG 2.1 between an element's text and the first opaque ground behind it."""
    ink, ground = browser.execute_script(
        """
        let element = document.querySelector(arguments[0]);
        const ink = getComputedStyle(element).color;
        const clear = "rgba(0, 0, 0, 0)";
        while (getComputedStyle(element).backgroundColor === clear) element = element.parentElement;
        return [ink, getComputedStyle(element).backgroundColor].map((text) => text.match(/\\d+/g).map(Number));
        """,
        selector,
    )
    lighter, darker = sorted((relative_luminance(ink), relative_luminance(ground)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def relative_luminance(color: list[int]) -> float:
    """WCAG 2.1's, of red, green and blue from 0 to 255."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in (c / 255 for c in color)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
