"""Networks of others: where they come from, what they mean, and how they are asked."""

from optcov.adapter.load import load
from optcov.adapter.pretrained import Pretrained

__all__ = ["Pretrained", "load"]
