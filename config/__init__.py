"""Configuration: every limit, the sources of its value, and how code is compiled. Imports nothing of ours."""

VERSION = "0.1.0"
