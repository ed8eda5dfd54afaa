"""Configuration: every limit, where its value comes from, and how code is compiled. Imports nothing of ours."""

VERSION = "0.1.0"
