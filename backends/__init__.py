"""Backends: where the bytes of a stream come from. They import config, never daemon."""
