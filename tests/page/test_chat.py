"""The chat: what is shown of an answer, whole or not, and how it is stopped."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import pytest
from selenium.webdriver.common.keys import Keys

from tests.page.conftest import KEY
from tests.page.reader import NOTHING
from tests.page.stage import MODEL

if TYPE_CHECKING:
    from tests.behaviour.daemon_process import Daemon
    from tests.page.reader import Reader
    from tests.page.stage import Stage

pytestmark = pytest.mark.browser

# A person notices a page that does not answer for longer (RAIL: 100 ms); the test's machine is shared and slow.
PAGE_SILENT_MS_MAX = 250
TOKENS_FAST = 200_000
GONE = 'streaming_daemon_streams_ended_total{reason="client_gone"}'
# More than any test waits for: somebody has to stop it.
TOKENS_ENDLESS = 1_000_000


def tokens(count: int) -> str:
    """What test-model answers."""
    return "".join(f"token_{index} " for index in range(count))


def test_an_answer_is_shown_with_its_numbers(reader: Reader) -> None:
    reader.allow_tokens(50)
    assert reader.ask_to_the_end("grüße & <b>so on</b>") == "complete"
    assert reader.answer == tokens(50)
    assert reader.run("return document.querySelector('.bubble').textContent") == "grüße & <b>so on</b>"
    assert re.fullmatch(r"[\d.]+ ms", reader.number("ttft"))
    assert re.fullmatch(r"[\d.,]+ tokens/s", reader.number("rate"))
    assert (reader.number("tokens"), reader.number("finish")) == ("50", "length")
    assert int(reader.number("prompt-tokens")) > 0
    assert "limit of tokens" in reader.notes
    assert reader.run("return document.querySelector('.who').textContent") == "test-model"
    assert reader.announced == "The answer is complete: 50 tokens."


def test_a_question_is_sent_as_openais_clients_send_it(staged: Reader, stage: Stage) -> None:
    assert staged.ask_to_the_end("hello") == "complete"
    [asked] = stage.asked
    assert asked["model"] == MODEL
    assert asked["stream"] is True
    assert asked["stream_options"] == {"include_usage": True}
    assert "max_tokens" not in asked, "an empty field is not sent"


def test_the_conversation_is_sent_along_and_a_new_chat_forgets_it(staged: Reader, stage: Stage) -> None:
    staged.ask_to_the_end("one")
    staged.ask_to_the_end("two")
    roles = [(message["role"], message["content"]) for message in stage.asked[1]["messages"]]
    assert roles == [("user", "one"), ("assistant", "You said: one That is all. "), ("user", "two")]
    staged.press("new-chat")
    assert staged.run("return document.querySelectorAll('#conversation article').length") == 0
    staged.ask_to_the_end("three")
    assert [message["content"] for message in stage.asked[2]["messages"]] == ["three"]


def test_options_are_sent_and_wrong_ones_are_not(staged: Reader, stage: Stage) -> None:
    staged.run("document.getElementById('options').open = true")
    staged.find("system").send_keys("Be brief.")
    staged.find("max-tokens").send_keys("50")
    staged.find("temperature").send_keys("3")
    staged.ask("hello")
    time.sleep(0.3)
    assert stage.asked == []
    staged.find("temperature").send_keys(Keys.BACKSPACE, "0.5")
    staged.ask_to_the_end("")
    assert stage.asked[0]["max_tokens"] == 50
    assert stage.asked[0]["temperature"] == 0.5
    assert stage.asked[0]["messages"][0] == {"role": "system", "content": "Be brief."}


def test_another_model_can_be_chosen(staged: Reader, stage: Stage) -> None:
    staged.find("model").send_keys("stage-2-large")
    staged.ask_to_the_end("hello")
    assert stage.asked[0]["model"] == "stage-2-large"


@pytest.mark.parametrize("way", ["button", "escape"])
def test_stop_ends_the_answer_and_keeps_what_had_come(reader: Reader, daemon: Daemon, way: str) -> None:
    gone = daemon.metric(GONE)
    reader.allow_tokens(TOKENS_ENDLESS)
    reader.ask("hello")
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
    assert "token_" in text
    assert "Stopped" in reader.notes
    assert reader.find("send").is_displayed()
    daemon.wait_for_metric(GONE, gone + 1)
    reader.allow_tokens(3)
    assert reader.ask_to_the_end("the next one") == "complete"
    assert reader.answer == tokens(3)


def test_stop_before_the_first_token(staged: Reader) -> None:
    staged.ask("silent")
    staged.wait(lambda: staged.find("stop").is_displayed())
    staged.press("stop")
    staged.wait(lambda: staged.outcome == "stopped")
    assert staged.number("ttft") == NOTHING
    assert "before anything came" in staged.notes


def test_one_answer_at_a_time(reader: Reader) -> None:
    reader.allow_tokens(TOKENS_ENDLESS)
    reader.ask("hello")
    reader.ask("another")
    assert "still coming" in reader.announced
    assert reader.run("return document.querySelectorAll('.answer').length") == 1
    assert reader.value("prompt") == "another", "what was typed is kept"


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
def test_an_error_status_is_shown_with_its_message(staged: Reader, status: int) -> None:
    staged.expect_in_console(f"status of {status}")
    assert staged.ask_to_the_end(f"status {status}") == "failed"
    assert f"{status}: refused for the test with {status}" in staged.notes
    assert ("Try again in 7 s." in staged.notes) is (status == 429)
    assert staged.announced.startswith("Error.")


def test_an_error_in_the_stream_is_shown(staged: Reader) -> None:
    assert staged.ask_to_the_end("error event") == "failed"
    assert staged.answer == "Half an "
    assert "the model went away" in staged.notes


@pytest.mark.parametrize("script", ["cut", "ended"])
def test_an_answer_that_is_cut_short_is_said_to_be(staged: Reader, script: str) -> None:
    staged.expect_in_console("net::ERR_INCOMPLETE_CHUNKED_ENCODING")
    assert staged.ask_to_the_end(script) == "cut"
    assert staged.answer == "Half an "
    assert "was cut short" in staged.notes
    assert "complete" not in staged.announced


def test_what_failed_can_be_asked_again(staged: Reader, stage: Stage) -> None:
    staged.ask_to_the_end("error event")
    staged.run("[...document.querySelectorAll('.answer .link')].find((e) => e.textContent === 'Ask again').click()")
    staged.wait(lambda: len(stage.asked) == 2 and staged.outcome == "failed")
    assert stage.asked[0] == stage.asked[1]
    assert staged.run("return document.querySelectorAll('.answer').length") == 1


def test_a_server_that_is_not_there(reader: Reader) -> None:
    reader.expect_in_console("ERR_CONNECTION_REFUSED")
    # The stage stays for the other tests: the page is told of an address where nobody listens.
    reader.run("const real = window.fetch; window.fetch = (path, o) => real('http://127.0.0.1:1/' + path, o)")
    reader.expect_in_console("127.0.0.1:1/")
    assert reader.ask_to_the_end("hello") == "failed"
    assert "The server cannot be reached." in reader.notes


def test_events_cut_anywhere_are_put_together(staged: Reader) -> None:
    assert staged.ask_to_the_end("pieces") == "complete"
    assert staged.answer == "grüße, 😀 all"


def test_an_answer_is_never_markup(staged: Reader) -> None:
    assert staged.ask_to_the_end("markup") == "complete"
    assert staged.answer.startswith("<img src=x")
    assert staged.run("return document.querySelectorAll('.answer img, .answer b').length") == 0
    assert staged.browser.title == "streaming-daemon"
    assert "limit of tokens" in staged.notes


def test_reasoning_is_shown_apart(staged: Reader) -> None:
    assert staged.ask_to_the_end("reason") == "complete"
    assert staged.answer == "Forty-two."
    assert "Let me think." in staged.run("return document.querySelector('.reasoning').textContent")


@pytest.mark.serial
@pytest.mark.parametrize("way", ["reader", "guarded"], ids=["120,000/s", "unpaced"])
def test_a_fast_answer_does_not_freeze_the_page(request: pytest.FixtureRequest, way: str) -> None:
    page: Reader = request.getfixturevalue(way)
    # The longest time between two turns of the page's own event loop while the answer comes.
    page.run(
        """
        window.longest = 0;
        let last = performance.now();
        setInterval(() => {
          window.longest = Math.max(window.longest, performance.now() - last);
          last = performance.now();
        }, 5);
        """
    )
    page.allow_tokens(TOKENS_FAST)
    assert page.ask_to_the_end("hello") == "complete"
    assert page.number("tokens") == f"{TOKENS_FAST:,}"
    assert page.run("return window.longest") < PAGE_SILENT_MS_MAX
    shown = page.run("return document.querySelector('.answer > .text').textContent.length")
    assert shown < 210_000, "what is far above leaves the page"
    assert "characters are not shown" in page.answer
    assert page.answer.endswith(f"token_{TOKENS_FAST - 1} ")


def test_a_key_is_asked_for_where_one_is_needed(locked_out: Reader) -> None:
    assert locked_out.focused == "key"
    locked_out.give_key("a-wrong-one")
    locked_out.wait(lambda: "Invalid API key" in locked_out.find("key-why").text)
    locked_out.give_key(KEY)
    locked_out.wait(lambda: locked_out.can_choose_a_model)
    assert locked_out.ask_to_the_end("hello") == "complete"
    assert locked_out.find("key-button").is_displayed()
    assert locked_out.run("return [localStorage.length, document.cookie]") == [0, ""]
    locked_out.browser.refresh()
    locked_out.wait(lambda: locked_out.can_choose_a_model)
    assert locked_out.ask_to_the_end("again") == "complete"


def test_where_no_key_is_needed_none_is_asked_for(reader: Reader) -> None:
    assert reader.ask_to_the_end("hello") == "complete"
    assert not reader.find("key-button").is_displayed()


def test_without_a_key_the_error_is_shown(locked_out: Reader) -> None:
    locked_out.type(Keys.ESCAPE)
    locked_out.wait(lambda: "No models: 401" in locked_out.find("model-note").text)
    locked_out.ask("hello")
    locked_out.wait(lambda: locked_out.find("key-dialog").is_displayed())
    locked_out.type(Keys.ESCAPE)
    locked_out.wait(lambda: locked_out.outcome == "failed")
    assert "401: Missing or invalid Authorization header" in locked_out.notes
