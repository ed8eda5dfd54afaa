"""Attempts over TLS and HTTP/2, by libcurl, on a thread of their own."""
