"""Let docstrings keep their sections together: Griffe wants an empty line before each, which the sources leave out."""

import re
from typing import Any

import griffe

SECTION = re.compile(r"(?<=\S)\n(?=(?:Args|Attributes|Returns|Raises|Yields):\n)")


class Sections(griffe.Extension):
    """Separates the sections of every docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = SECTION.sub("\n\n", obj.docstring.value)
