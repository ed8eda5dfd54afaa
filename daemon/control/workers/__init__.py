"""Threads that run backends, and what each may push."""
