"""The one sentence about an error names its cause, whatever library wrapped it."""

import errno

import pytest

from optcov.errors import sentence


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            caused(
                ValueError("Unable to configure handler 'file'"), OSError(errno.ENOSPC, "No space", "run/train.log")
            ),
            "run/train.log cannot be written or read (No space): ",
        ),
        (
            RuntimeError("[/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:16030: Connection"),
            "another process of this job has ended",
        ),
    ],
)
def test_the_sentence_names_the_cause(error: Exception, said: str):
    assert sentence(error).startswith(said)
