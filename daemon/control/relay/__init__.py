"""Streams that an upstream makes: where it is, whom to ask next, how it ended. Main thread."""
