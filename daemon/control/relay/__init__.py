"""Streams that an upstream makes: its address, the next attempt, the outcome. Main thread."""
