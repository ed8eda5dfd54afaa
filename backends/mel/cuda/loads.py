"""How many streams each device has, over all engines that use it. Any thread."""

from __future__ import annotations

import threading
from collections import Counter


class Loads:
    """Engines of 80 and of 128 bins share one, or each would put its first stream on the first device."""

    def __init__(self) -> None:
        """No streams."""
        self.lock = threading.Lock()
        self.streams: Counter[str] = Counter()  # by the device's name; hold the lock
