"""Swagger UI and the page in Chromium, under the policy that the front sends: nothing of them may be refused by it."""

# Selenium's own annotations leave out what its dictionaries and arguments hold.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from tests.browser import running_chromium
from tests.daemon.control.http.uvicorn.fakes import FakeFront, options, page, served

if TYPE_CHECKING:
    from collections.abc import Iterator

    from selenium.webdriver import Chrome

pytestmark = pytest.mark.browser
WAIT_S = 30


@pytest.fixture(scope="module")
def base() -> Iterator[str]:
    pages = {
        "/health": page(HTTPStatus.OK, status="healthy"),
        "/ready": page(HTTPStatus.OK, ready=True),
        "/metrics": page(HTTPStatus.OK),
    }
    with served(FakeFront(), options(pages=pages)) as found:
        yield found


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with running_chromium(tmp_path_factory.mktemp("chromium")) as driver:
        yield driver


def complaints(browser: Chrome) -> list[str]:
    logged: list[dict[str, str]] = browser.get_log("browser")  # type: ignore[no-untyped-call]
    return [entry["message"] for entry in logged if "Content Security Policy" in entry["message"]]


def fetched(browser: Chrome) -> list[str]:
    names: list[str] = browser.execute_script("return performance.getEntriesByType('resource').map(one => one.name)")
    return names


def test_swagger_ui_shows_the_api(browser: Chrome, base: str) -> None:
    browser.get(f"{base}/docs")
    WebDriverWait(browser, WAIT_S).until(lambda one: len(one.find_elements(By.CSS_SELECTOR, ".opblock")) == 7)
    shown = browser.find_element(By.CSS_SELECTOR, "#swagger-ui").text
    assert "/v1/chat/completions" in shown
    browser.find_element(By.CSS_SELECTOR, ".opblock-post .opblock-summary-control").click()
    WebDriverWait(browser, WAIT_S).until(
        lambda one: one.find_elements(By.CSS_SELECTOR, ".opblock-body .responses-table")
    )
    assert complaints(browser) == []
    names = fetched(browser)
    assert any(name.endswith("/docs/assets/swagger-ui-bundle.js") for name in names)
    assert all(name.startswith((base, "data:")) for name in names)


def test_the_page_is_whole(browser: Chrome, base: str) -> None:
    browser.get(f"{base}/")
    WebDriverWait(browser, WAIT_S).until(lambda one: one.execute_script("return document.readyState") == "complete")
    assert browser.find_elements(By.CSS_SELECTOR, "main")
    assert complaints(browser) == []
    names = fetched(browser)
    assert any(name.endswith("/static/app.js") for name in names)
    assert all(name.startswith((base, "data:")) for name in names)
