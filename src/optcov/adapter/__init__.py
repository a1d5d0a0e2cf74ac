"""Third-party networks: how they are found, what their conventions are, and how they are called."""

from optcov.adapter.load import load
from optcov.adapter.pretrained import Pretrained

__all__ = ["Pretrained", "load"]
