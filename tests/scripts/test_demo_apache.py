from __future__ import annotations

import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from scripts.private_apache import ROOT, ApacheError, require_packages


@pytest.mark.apache
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_it_shows_a_stream_serves_the_page_and_leaves_nothing_behind(sent: signal.Signals) -> None:
    command = [sys.executable, "-m", "scripts.demo_apache", "--port", "28080"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        shown = ""
        for line in process.stdout:
            shown += line
            if "tail -f" in line:
                break
        page = re.search(r"Open (http\S+) in a browser", shown)
        assert page is not None, shown
        with urllib.request.urlopen(page[1], timeout=10) as response:
            assert b"A stream, as it arrives" in response.read()
        process.send_signal(sent)
        rest, _ = process.communicate(timeout=30)
    assert process.returncode == 0, rest
    assert shown.index("This is message 13 of 18.") < shown.index("data: [DONE]") < shown.index("Open http")
    folder = re.search(r"daemon, in (\S+)", shown)
    assert folder is not None
    assert not Path(folder[1]).exists()


def test_what_is_missing_is_named_with_the_command_that_installs_it() -> None:
    with pytest.raises(ApacheError, match=r"apt-get install --yes --no-install-recommends one two"):
        require_packages({"/nonexistent/b*": "two", "/nonexistent/a": "one", "/bin/sh": "dash"})
