"""Handles text and small files from others: files are read within limits, and text is escaped for each output format.

A run's folder may come from a stranger, and so may the names of its metrics, its settings and its log.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

LIMIT = 1 << 20  # largest file in bytes
DEPTH = 40  # levels of lists and dictionaries
LABEL = 160  # characters of a label
CHECKSUM = "# sha256 of the lines below: "
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C loader, if PyYAML has it, is ten times as fast
# how a formula begins, also in the wide letters of East Asian keyboards
_FORMULA = re.compile(r"[=@\uff1d\uff20\uff0b\uff0d]|[+-](?![\d.]+(e[+-]?\d+)?$|inf$)")
_TEX = {each: f"\\{each}" for each in "{}$&#_%"} | {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}


class DamagedError(ValueError):
    """A file is damaged or not of the expected form; the message is the end of a sentence that says how."""


def read_yaml(path: Path) -> Any:
    """Read a YAML file that holds only numbers, text, lists and dictionaries, without aliases or tags.

    If its first line is a checksum, as written by `sealed_yaml`, the checksum is verified.

    Raises:
        DamagedError: if it is damaged, too large, nested too deeply, or holds anything else.
    """
    text = _text(path)
    if text.startswith(CHECKSUM):
        said, _, text = text.removeprefix(CHECKSUM).partition("\n")
        if said != _sha256(text):
            raise DamagedError("it does not match its checksum; delete its first line if you changed it yourself")
    try:
        depth = 0
        for event in yaml.parse(text, Loader=_LOADER):
            if isinstance(event, yaml.AliasEvent):  # a few aliases can expand to gigabytes
                raise DamagedError("it has an alias")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEPTH:
                raise DamagedError(f"it nests more than {DEPTH} levels")
        content = yaml.load(text, Loader=_LOADER)
    except (yaml.YAMLError, RecursionError) as error:
        raise DamagedError("it is not plain YAML") from error
    except DamagedError:
        raise
    except ValueError as error:  # such as a date that does not exist
        raise DamagedError(f"it is not plain YAML, {error}") from error
    return _plain(content)


def read_json(path: Path, limit: int = LIMIT) -> Any:
    """Read a JSON file; if it has a checksum written by `sealed_json`, verify and remove it.

    Args:
        path: path of the file.
        limit: largest size of the file in bytes.
    Raises:
        DamagedError: if it is damaged, too large, or nested too deeply.
    """
    text = _text(path, limit)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedError("it is not JSON") from error
    if isinstance(content, dict) and (said := content.pop("sha256", None)) is not None and said != _of_json(content):
        raise DamagedError("it does not match its checksum")
    return _plain(content)


def sealed_json(content: dict[str, Any], indent: int | None = None) -> str:
    """Return content as JSON, with its checksum under the key ``sha256``."""
    content = json.loads(json.dumps(content))  # hash the content in the form in which it will be read
    return json.dumps(content | {"sha256": _of_json(content)}, indent=indent) + "\n"


def sealed_yaml(text: str) -> str:
    """Return YAML with its checksum in a comment on the first line."""
    return f"{CHECKSUM}{_sha256(text)}\n{text}"


def _of_json(content: dict[str, Any]) -> str:
    return _sha256(json.dumps(content, sort_keys=True))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _text(path: Path, limit: int = LIMIT) -> str:
    if not path.is_file():
        raise DamagedError("it is not a file")
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise DamagedError(f"it is larger than {limit >> 20} MiB")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise DamagedError("it is not text in UTF-8") from error


def _plain(content: Any, depth: int = 0) -> Any:
    """Return content that consists of plain values, with keys as strings; refuse any other."""
    if depth > DEPTH:
        raise DamagedError(f"it nests more than {DEPTH} levels")
    if isinstance(content, dict):
        return {str(key): _plain(value, depth + 1) for key, value in content.items()}
    if isinstance(content, list):
        return [_plain(value, depth + 1) for value in content]
    if content is None or isinstance(content, (bool, int, float, str)):
        return content
    raise DamagedError(f"it holds a {type(content).__name__}")


def printable(text: Any) -> str:
    """Return text on one line, with characters that control a terminal or the writing direction replaced."""
    line = " ".join(str(text).split())
    if line.isprintable():
        return line
    return "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(each)[0] == "C" else each for each in line)


def label(text: Any) -> str:
    """Return printable text of limited length; if it is cut, a hash of the whole keeps it distinct."""
    line = printable(text)
    return line if len(line) <= LABEL else f"{line[: LABEL - 10]}… {_short_hash(str(text))}"


def file_name(text: str, reserved: tuple[str, ...] = ()) -> str:
    """Turn text into the name of a file: never a path, never hidden, and never one of the reserved names."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", text).lstrip(".-_")[:100]
    return name if name == text and name not in reserved else f"{name}-{_short_hash(text)}".lstrip("-")


def tex(text: Any) -> str:
    """Escape text for TeX."""
    return "".join(_TEX.get(each, each) for each in printable(text))


def markdown(text: Any) -> str:
    """Escape text for Markdown, including its tables."""
    line = printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # otherwise GitHub makes links of addresses without any markup
    line = line.replace("://", "&#58;//").replace("www.", "www&#46;").replace("@", "&#64;")
    return re.sub(r"([\\`|*\[\]])", r"\\\1", line)


def terminal(text: Any) -> str:
    """Escape text for rich's markup."""
    from rich.markup import escape

    line = escape(printable(text))
    # an odd number of final backslashes would escape what follows
    return line + "\\" if (len(line) - len(line.rstrip("\\"))) % 2 else line


def plotted(text: Any) -> str:
    """Escape text for matplotlib's legends and titles, so that it is not read as mathematics."""
    line = label(text).replace("$", r"\$")
    return f" {line}" if line.startswith("_") else line  # matplotlib hides labels that start with _


def cell(value: Any) -> Any:
    """Return a value for a CSV file in a form that no spreadsheet reads as a formula."""
    if not isinstance(value, str):
        return value
    line = printable(value)
    return f"'{line}" if _FORMULA.match(line) else line


def link(path: Path, folder: Path) -> str:
    """The relative address of a path, for a page in a folder; whatever the names are, it has no scheme."""
    return quote(os.fsencode(Path(os.path.relpath(path, folder)).as_posix()))


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]
