"""Reading of benchmark files; errors name the file, the line and the field."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Fields = Mapping[str, type | tuple[type, ...]]


def read_jsonl(path: Path, fields: Fields) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON Lines file that have the given fields; skip empty lines."""
    for _, row in numbered_jsonl(path, fields):
        yield row


def numbered_jsonl(path: Path, fields: Fields) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of `read_jsonl`, each after the number of its line, from 1."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            row = _parse_line(line, f"{path}, line {number}")
            check(row, fields, f"{path}, line {number}")
            yield number, row


def read_json(path: Path) -> Any:
    """Return the content of a JSON file."""
    return _parse(read_text(path), str(path))


def examples(paths: Sequence[Path]) -> Iterator[tuple[str, int, dict[str, str]]]:
    """Yield (file stem, index, row) of BIG-Bench files, {"examples": [{"input", "target"}]}."""
    for path in paths:
        content = read_json(path)
        check(content, {"examples": list}, str(path))
        for number, row in enumerate(content["examples"]):
            check(row, {"input": str, "target": str}, f"{path}, example {number}")
            yield path.stem, number, row


def read_text(path: Path) -> str:
    """Return the content of a UTF-8 file, with or without a byte order mark.

    Raises:
        ValueError: the file is missing or unreadable; the message has the remedy.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise ValueError(
            f"no file {path}: set OTR_BENCHMARKS (or the directory given) to the folder that holds "
            "the published files, or correct the path"
        ) from None
    except (UnicodeDecodeError, PermissionError) as error:
        raise ValueError(f"{path} cannot be read as UTF-8 text: {error}") from error


def check(row: Any, fields: Fields, location: str) -> None:
    """Check that `row` has the fields.

    Raises:
        ValueError: a field is missing or of another type; the message starts with `location`.
    """
    if not isinstance(row, dict):
        raise ValueError(f"{location}: expected a JSON object, found {type(row).__name__}")
    for name, kind in fields.items():
        if name not in row:
            raise ValueError(f'{location}: field "{name}" is missing; the fields are {sorted(row)}')
        if not isinstance(row[name], kind):
            kinds = kind if isinstance(kind, tuple) else (kind,)
            expected = " or ".join(each.__name__ for each in kinds)
            raise ValueError(
                f'{location}: field "{name}" is {row[name]!r:.80}, expected {expected}'
            )


def _parse_line(line: str, location: str) -> Any:
    """Parse a line of a JSON Lines file; a document on several lines is an error that says so."""
    if line.strip() in ("[", "{", "[{"):
        raise ValueError(
            f"{location}: a JSON document on several lines; give one object per line, without "
            "brackets around all"
        )
    return _parse(line, location)


def _parse(text: str, location: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{location}: not valid JSON ({error.msg}, column {error.colno})"
        ) from error
    except (ValueError, RecursionError) as error:  # a number with thousands of digits
        raise ValueError(f"{location}: not readable as JSON ({error})") from error
