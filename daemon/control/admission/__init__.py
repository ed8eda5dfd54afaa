"""Decides what streams on a socket, or why nothing does. Main thread."""
