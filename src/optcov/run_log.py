"""The log in a run's folder, which Hydra opens before anything about that folder has been checked."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any

from optcov.files import atomic_write


class RunLog(logging.FileHandler):
    """Appends to a file of the folder's own: in a folder from a stranger it may be a link to any other, or a pipe."""

    def _open(self) -> Any:
        return open(self.baseFilename, self.mode, encoding="utf-8", errors="backslashreplace", opener=_opened)


def _opened(path: str, flags: int) -> int:
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    file = os.open(path, flags, 0o666)
    if os.fstat(file).st_nlink > 1:  # a hard link: go on with a copy
        os.close(file)
        with atomic_write(Path(path)) as partial:
            shutil.copyfile(path, partial)
        file = os.open(path, flags, 0o666)
    return file
