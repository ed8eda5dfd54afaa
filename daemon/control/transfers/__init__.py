"""Attempts over TLS and HTTP/2, made by libcurl on a thread of their own."""
