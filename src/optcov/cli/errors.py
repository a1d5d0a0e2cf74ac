"""Errors that a user can mend: one sentence that names the key, the value and the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import InstantiationException
from lightning.fabric.utilities.exceptions import MisconfigurationException

REFUSALS = (ValueError, MisconfigurationException)


class ConfigError(ValueError):
    """A configuration can not be run; the message is the whole story."""


@contextmanager
def refusals(key: str) -> Iterator[None]:
    """Turn a ValueError raised inside, by a constructor or a check, into a ConfigError that names ``key``."""
    try:
        yield
    except ConfigError:
        raise
    except InstantiationException as error:
        if not isinstance(error.__cause__, REFUSALS):
            raise
        raise ConfigError(_named(key, error.__cause__)) from error
    except REFUSALS as error:
        raise ConfigError(_named(key, error)) from error


def _named(key: str, error: BaseException) -> str:
    message = str(error)
    return message if message.startswith(key) else f"{key}: {message}"
