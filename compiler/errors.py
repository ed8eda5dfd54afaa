"""Errors for the user of a build."""


class BuildError(Exception):
    """The build cannot continue; the message gives the reason and a remedy."""
