"""The chat: what is shown of an answer, whole or not, and how it is stopped."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import pytest
from selenium.webdriver.common.keys import Keys

from tests.page.reader import NOTHING
from tests.page.stage import KEY, MODEL

if TYPE_CHECKING:
    from tests.page.reader import Reader
    from tests.page.stage import Stage

pytestmark = pytest.mark.browser

# A person notices a page that does not answer for longer (RAIL: 100 ms); the test's machine is shared and slow.
PAGE_SILENT_MS_MAX = 250


def test_an_answer_is_shown_with_its_numbers(reader: Reader, stage: Stage) -> None:
    assert reader.ask_to_the_end("grüße & <b>so on</b>") == "complete"
    assert reader.answer == "You said: grüße & <b>so on</b> That is all. "
    assert re.fullmatch(r"[\d.]+ ms", reader.number("ttft"))
    assert re.fullmatch(r"[\d.,]+ tokens/s", reader.number("rate"))
    assert (reader.number("tokens"), reader.number("prompt-tokens"), reader.number("finish")) == ("9", "7", "stop")
    assert reader.run("return document.querySelector('.who').textContent") == MODEL
    assert reader.announced == "The answer is complete: 9 tokens."
    [asked] = stage.asked
    assert asked["model"] == MODEL
    assert asked["stream"] is True
    assert asked["stream_options"] == {"include_usage": True}
    assert "max_tokens" not in asked, "an empty field is not sent"


def test_the_conversation_is_sent_along_and_a_new_chat_forgets_it(reader: Reader, stage: Stage) -> None:
    reader.ask_to_the_end("one")
    reader.ask_to_the_end("two")
    roles = [(message["role"], message["content"]) for message in stage.asked[1]["messages"]]
    assert roles == [("user", "one"), ("assistant", "You said: one That is all. "), ("user", "two")]
    reader.press("new-chat")
    assert reader.run("return document.querySelectorAll('#conversation article').length") == 0
    reader.ask_to_the_end("three")
    assert [message["content"] for message in stage.asked[2]["messages"]] == ["three"]


def test_options_are_sent_and_wrong_ones_are_not(reader: Reader, stage: Stage) -> None:
    reader.run("document.getElementById('options').open = true")
    reader.find("system").send_keys("Be brief.")
    reader.find("max-tokens").send_keys("50")
    reader.find("temperature").send_keys("3")
    reader.ask("hello")
    time.sleep(0.3)
    assert stage.asked == []
    reader.find("temperature").send_keys(Keys.BACKSPACE, "0.5")
    reader.ask_to_the_end("")
    assert stage.asked[0]["max_tokens"] == 50
    assert stage.asked[0]["temperature"] == 0.5
    assert stage.asked[0]["messages"][0] == {"role": "system", "content": "Be brief."}


def test_another_model_can_be_chosen(reader: Reader, stage: Stage) -> None:
    reader.find("model").send_keys("stage-2-large")
    reader.ask_to_the_end("hello")
    assert stage.asked[0]["model"] == "stage-2-large"


@pytest.mark.parametrize("way", ["button", "escape"])
def test_stop_ends_the_answer_and_keeps_what_had_come(reader: Reader, stage: Stage, way: str) -> None:
    reader.ask("slow")
    reader.wait(lambda: len(reader.answer) > 4)
    assert reader.find("stop").is_displayed()
    assert not reader.find("send").is_displayed()
    if way == "button":
        reader.press("stop")
    else:
        reader.type(Keys.ESCAPE)
    reader.wait(lambda: reader.outcome == "stopped")
    text = reader.answer
    time.sleep(0.3)
    assert reader.answer == text
    assert text.startswith("0 1 2 ")
    assert "Stopped" in reader.notes
    assert reader.find("send").is_displayed()
    reader.wait(lambda: stage.cancelled_count == 1)


def test_stop_before_the_first_token(reader: Reader) -> None:
    reader.ask("silent")
    reader.wait(lambda: reader.find("stop").is_displayed())
    reader.press("stop")
    reader.wait(lambda: reader.outcome == "stopped")
    assert reader.number("ttft") == NOTHING
    assert "before anything came" in reader.notes


def test_one_answer_at_a_time(reader: Reader, stage: Stage) -> None:
    reader.ask("slow")
    reader.ask("another")
    assert "still coming" in reader.announced
    assert len(stage.asked) == 1
    assert reader.value("prompt") == "another", "what was typed is kept"


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
def test_an_error_status_is_shown_with_its_message(reader: Reader, status: int) -> None:
    reader.expect_in_console(f"status of {status}")
    assert reader.ask_to_the_end(f"status {status}") == "failed"
    assert f"{status}: refused for the test with {status}" in reader.notes
    assert ("Try again in 7 s." in reader.notes) is (status == 429)
    assert reader.announced.startswith("Error.")


def test_an_error_in_the_stream_is_shown(reader: Reader) -> None:
    assert reader.ask_to_the_end("error event") == "failed"
    assert reader.answer == "Half an "
    assert "the model went away" in reader.notes


@pytest.mark.parametrize("script", ["cut", "ended"])
def test_an_answer_that_is_cut_short_is_said_to_be(reader: Reader, script: str) -> None:
    reader.expect_in_console("net::ERR_INCOMPLETE_CHUNKED_ENCODING")
    assert reader.ask_to_the_end(script) == "cut"
    assert reader.answer == "Half an "
    assert "was cut short" in reader.notes
    assert "complete" not in reader.announced


def test_what_failed_can_be_asked_again(reader: Reader, stage: Stage) -> None:
    reader.ask_to_the_end("error event")
    reader.run("[...document.querySelectorAll('.answer .link')].find((e) => e.textContent === 'Ask again').click()")
    reader.wait(lambda: len(stage.asked) == 2 and reader.outcome == "failed")
    assert stage.asked[0] == stage.asked[1]
    assert reader.run("return document.querySelectorAll('.answer').length") == 1


def test_a_server_that_is_not_there(reader: Reader) -> None:
    reader.expect_in_console("ERR_CONNECTION_REFUSED")
    # The stage stays for the other tests: the page is told of an address where nobody listens.
    reader.run("const real = window.fetch; window.fetch = (path, o) => real('http://127.0.0.1:1/' + path, o)")
    reader.expect_in_console("127.0.0.1:1/")
    assert reader.ask_to_the_end("hello") == "failed"
    assert "The server cannot be reached." in reader.notes


def test_events_cut_anywhere_are_put_together(reader: Reader) -> None:
    assert reader.ask_to_the_end("pieces") == "complete"
    assert reader.answer == "grüße, 😀 all"


def test_an_answer_is_never_markup(reader: Reader) -> None:
    assert reader.ask_to_the_end("markup") == "complete"
    assert reader.answer.startswith("<img src=x")
    assert reader.run("return document.querySelectorAll('.answer img, .answer b').length") == 0
    assert reader.browser.title == "streaming-daemon"
    assert "limit of tokens" in reader.notes


def test_reasoning_is_shown_apart(reader: Reader) -> None:
    assert reader.ask_to_the_end("reason") == "complete"
    assert reader.answer == "Forty-two."
    assert "Let me think." in reader.run("return document.querySelector('.reasoning').textContent")


def test_twenty_thousand_tokens_at_once_do_not_freeze_the_page(reader: Reader) -> None:
    # The longest time between two turns of the page's own event loop while the answer comes.
    reader.run(
        """
        window.longest = 0;
        let last = performance.now();
        setInterval(() => {
          window.longest = Math.max(window.longest, performance.now() - last);
          last = performance.now();
        }, 5);
        """
    )
    assert reader.ask_to_the_end("many 20000") == "complete"
    assert reader.number("tokens") == "20,000"
    assert reader.run("return window.longest") < PAGE_SILENT_MS_MAX
    assert reader.answer.endswith("t19999 \n")


def test_a_very_long_answer_leaves_the_page_at_the_top(reader: Reader) -> None:
    assert reader.ask_to_the_end("many 60000") == "complete"
    shown = reader.run("return document.querySelector('.answer > .text').textContent.length")
    assert shown < 210_000
    assert "characters are not shown" in reader.answer
    assert reader.answer.endswith("t59999 \n")


def test_a_key_is_asked_for_once_it_is_needed(reader: Reader, stage: Stage) -> None:
    assert not reader.find("key-button").is_displayed()
    stage.wants_key = True
    reader.expect_in_console("status of 401")
    reader.ask("hello")
    reader.wait(lambda: reader.find("key-dialog").is_displayed())
    assert reader.focused == "key"
    reader.type("wrong", Keys.ENTER)
    reader.wait(lambda: reader.find("key-dialog").is_displayed() and reader.focused == "key")
    reader.wait(lambda: "Invalid API key" in reader.find("key-why").text)
    reader.type(Keys.CONTROL, "a")
    reader.type(KEY, Keys.ENTER)
    reader.wait(lambda: reader.outcome == "complete")
    assert reader.find("key-button").is_displayed()
    assert reader.run("return [localStorage.length, document.cookie]") == [0, ""]
    reader.browser.refresh()
    reader.wait(lambda: reader.can_choose_a_model)
    assert reader.ask_to_the_end("again") == "complete"


def test_without_a_key_the_error_is_shown(reader: Reader, stage: Stage) -> None:
    stage.wants_key = True
    reader.expect_in_console("status of 401")
    reader.ask("hello")
    reader.wait(lambda: reader.find("key-dialog").is_displayed())
    reader.type(Keys.ESCAPE)
    reader.wait(lambda: reader.outcome == "failed")
    assert "401: Missing or invalid Authorization header" in reader.notes
