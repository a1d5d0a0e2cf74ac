"""Errors that a user can fix: one sentence, "KEY must be WHAT (got VALUE): REMEDY."."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

from optcov.foreign import printable


class ConfigError(ValueError):
    """A config cannot be run; the user sees only the message."""


def must(key: str, what: str, value: Any, remedy: str) -> ConfigError:
    """Make the error for a bad value: ``KEY must be WHAT (got VALUE): REMEDY``."""
    return ConfigError(f"{key} must be {what} (got {value}): {remedy}")


def did_you_mean(name: str, valid: Iterable[Any], otherwise: str | None = None) -> str:
    """A remedy that suggests the nearest valid names; if none is near, ``otherwise`` or a list of all names."""
    names = sorted(map(str, valid))
    near = get_close_matches(name, names, n=2)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return otherwise or f"choose one of {', '.join(names)}"


@contextmanager
def config_errors(key: str) -> Iterator[None]:
    """Turn a ValueError raised inside, by a constructor or a check, into a ConfigError that names ``key``."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        # Hydra wraps exceptions of constructors; Lightning's own exception class would take seconds to import
        cause = error.__cause__ if type(error).__name__ == "InstantiationException" else error
        if cause is None and (refused := re.search("Target '(.*?)'.* is blocklisted", str(error))):
            what = "made of classes that Hydra lets a config name"
            raise must(key, what, refused[1], "name a class that runs no commands") from error
        if isinstance(cause, TypeError) and re.match(r"[\w.<>]+\(\) (missing|got|takes) ", str(cause)):
            raise must(key, "made by what takes these arguments", cause, "correct its _target_ or them") from error
        if not isinstance(cause, ValueError) and type(cause).__name__ != "MisconfigurationException":
            if cause is None or cause is error or isinstance(cause, OSError):
                raise
            raise ConfigError(f"{key}: {_unforeseen(cause)}") from error
        message = str(cause)
        raise ConfigError(message if message.startswith(key) else f"{key}: {message}") from error


def sentence(error: Exception) -> str:
    """The one line that tells the user about an error; it may quote what a stranger wrote."""
    return printable(_sentence(error))


def _sentence(error: Exception) -> str:
    if isinstance(error, ConfigError) or type(error).__name__ in ("CheckpointError", "InUseError", "Unfinished"):
        return str(error)
    if isinstance(error, RuntimeError) and ("inline_container" in str(error) or "iostream" in str(error)):
        return "a file could not be written completely (disk full?): free space, or set hydra.run.dir or cache_dir"
    if type(error).__name__ == "DistBackendError" or (isinstance(error, RuntimeError) and "/gloo/" in str(error)):
        return "another process of this job has ended, and its own words say why: repeat the command to go on"
    if (disk := of_the_disk(error)) is not None:
        error = disk
        remedy = "free space, correct its permissions, or set hydra.run.dir or cache_dir"
        return f"{error.filename or 'the output folder'} cannot be written or read ({error.strerror}): {remedy}"
    return _unforeseen(error)


def of_the_disk(error: BaseException | None) -> OSError | None:
    """The error of the file system that an exception is, or that caused it, if any."""
    while error is not None and not (isinstance(error, OSError) and error.errno is not None):
        error = error.__cause__
    return error


def _unforeseen(error: BaseException) -> str:
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first} (set HYDRA_FULL_ERROR=1 to see where it was raised)"
