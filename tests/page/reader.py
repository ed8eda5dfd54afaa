"""Somebody in front of the page."""

# Selenium's own annotations leave out what its dictionaries and arguments hold.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

WAIT_SECONDS_MAX = 20.0
NOTHING = "\N{EN DASH}"  # where there is no number


class Reader:
    """Reads and operates the page as a person does, with mouse or keyboard."""

    def __init__(self, browser: Chrome, url: str) -> None:
        self.browser = browser
        self.url = url
        self._expected: list[str] = []

    def open(self, part: str = "chat") -> None:
        self.leave()
        self.console()  # what an earlier page said is gone with it
        self.browser.get(f"{self.url}#{part}")
        self.wait(lambda: self.can_choose_a_model or self.find("key-dialog").is_displayed())

    def leave(self) -> None:
        """The page is left with all that it still has open, and so is its key."""
        if self.browser.current_url.startswith("http"):
            self.run("sessionStorage.clear()")
        self.browser.get("about:blank")

    def expect_in_console(self, text: str) -> None:
        """Browsers log every answer that is an error."""
        self._expected.append(text)

    def expects(self, entry: str) -> bool:
        return any(text in entry for text in self._expected)

    def console(self) -> list[str]:
        return [str(entry["message"]) for entry in self.browser.get_log("browser")]  # type: ignore[no-untyped-call]

    def find(self, name: str) -> WebElement:
        return self.browser.find_element(By.ID, name)

    def value(self, name: str) -> str:
        """What stands in a field."""
        return str(self.find(name).get_property("value"))

    @property
    def can_choose_a_model(self) -> bool:
        return not self.find("model").get_property("disabled")

    def run(self, script: str, *arguments: object) -> Any:  # noqa: ANN401  (whatever the script returns)
        return self.browser.execute_script(script, *arguments)

    def wait(self, condition: Callable[[], object], seconds: float = WAIT_SECONDS_MAX) -> None:
        WebDriverWait(self.browser, seconds, poll_frequency=0.02).until(lambda _browser: condition())

    def press(self, name: str) -> None:
        self.find(name).click()

    @property
    def focused(self) -> str | None:
        return self.browser.switch_to.active_element.get_attribute("id")

    def type(self, *keys: str) -> None:
        """To whatever has the focus."""
        self.browser.switch_to.active_element.send_keys(*keys)

    def tab(self) -> None:
        """The key itself: to a file's field selenium would send it as a name."""
        ActionChains(self.browser).send_keys(Keys.TAB).perform()

    def give_key(self, key: str) -> None:
        """To the dialog that asks for it, or is about to."""
        self.wait(lambda: self.find("key-dialog").is_displayed() and self.focused == "key")
        self.find("key").send_keys(Keys.CONTROL, "a", Keys.NULL, key, Keys.ENTER)

    # ---- the chat

    def ask(self, question: str) -> None:
        self.find("prompt").send_keys(question, Keys.ENTER)

    def ask_to_the_end(self, question: str) -> str | None:
        """The outcome."""
        self.ask(question)
        self.wait(lambda: self.outcome is not None)
        return self.outcome

    def allow_tokens(self, count: int) -> None:
        """To the answers that follow: of test-model they have so many."""
        self.run("const f = document.getElementById('max-tokens'); f.value = arguments[0]", count)

    @property
    def outcome(self) -> str | None:
        """How the last answer ended."""
        return str(self.run("return document.querySelector('.answer:last-of-type')?.dataset.outcome ?? ''")) or None

    @property
    def answer(self) -> str:
        """The last answer, with every space."""
        return str(
            self.run(
                "return [...document.querySelectorAll('.answer')].at(-1).querySelector(':scope > .text').textContent"
            )
        )

    @property
    def notes(self) -> str:
        """What is said below the last answer."""
        last = "[...document.querySelectorAll('.answer')].at(-1)"
        return " ".join(self.run(f"return [...{last}.querySelectorAll('.note')].map((note) => note.textContent)"))

    def number(self, kind: str) -> str:
        """One of the numbers below the last answer."""
        return str(self.run(f"return [...document.querySelectorAll('[data-number={kind}]')].at(-1)?.textContent ?? ''"))

    @property
    def announced(self) -> str:
        return str(self.find("chat-status").get_property("textContent"))

    # ---- the mel tab

    def choose_file(self, path: Path) -> None:
        self.find("mel-file").send_keys(str(path))

    def send_file(self, path: Path) -> str:
        """The state it ended in."""
        self.choose_file(path)
        self.wait(lambda: self.mel_state in {"done", "failed", "stopped"})
        return self.mel_state

    @property
    def mel_state(self) -> str:
        return str(self.find("mel-status").get_attribute("data-state"))

    @property
    def mel_said(self) -> str:
        return self.find("mel-status").text

    # ---- JavaScript of one of the page's modules

    def module(self, name: str, script: str, *arguments: object) -> Any:  # noqa: ANN401  (whatever it returns)
        """What an async function (module, ...arguments) returns."""
        # The function's text is part of the script: the page's policy forbids eval.
        done, value = self.browser.execute_async_script(
            f"""
            const [url, given, done] = arguments;
            import(url).then((module) => ({script})(module, ...given))
              .then((value) => done([true, value ?? null]))
              .catch((problem) => done([false, String(problem.stack ?? problem)]));
            """,
            f"{self.url}static/{name}",
            arguments,
        )
        assert done, value
        return value
