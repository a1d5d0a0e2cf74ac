"""The words of other libraries in our messages."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says anything, or else the name of its class."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
