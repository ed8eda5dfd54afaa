"""Threads that run backends, and how much each may push."""
