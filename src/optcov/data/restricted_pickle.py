"""Reads the pickles of CIFAR-10 without executing anything they ask for.

A pickle can call any function that its reader looks up.  A CIFAR batch needs only the functions that rebuild a NumPy
array; this reader refuses all others.
"""

from __future__ import annotations

import _codecs
import io
import pickle
from typing import Any

import numpy as np

_RECONSTRUCT = np.zeros(0).__reduce__()[0]
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _codecs.encode,  # how Python 3 writes bytes for Python 2
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR-10 batch needs") from None


def load_arrays(content: bytes) -> Any:
    """Load a pickle of plain values and NumPy arrays; Python 2 strings become bytes.

    Raises:
        ValueError: if it is damaged, or asks for anything else.
    """
    try:
        return _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # damaged opcodes make the reader raise almost anything
        raise ValueError(str(error) or type(error).__name__) from error
