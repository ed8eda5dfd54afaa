"""What the user of a build is told."""


class BuildError(Exception):
    """The build cannot go on; says why, and what would help."""
