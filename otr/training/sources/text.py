"""Opening text files as UTF-8, whatever their compression and encoding."""

import codecs
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fsspec
import pyarrow as pa

COMPRESSED = (".gz", ".zst")
UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
OTHER_FORMATS = {
    b"\x1f\x8b": ("compressed by gzip", "let its name end in .gz"),
    b"\x28\xb5\x2f\xfd": ("compressed by Zstandard", "let its name end in .zst"),
    b"\xfd7zXZ": ("compressed by xz", "decompress it"),
    b"PK\3\4": ("a ZIP archive", "unpack it"),
    b"PAR1\x15": ("a Parquet file", "let its name end in .parquet"),
    b"ARROW1\0": ("an Arrow file", "let its name end in .arrow"),
}
"""What a file is that begins with these bytes, and what to do with it."""
UTF32_MARKS = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)  # the first begins as that of UTF-16
LFS_POINTER = b"version https://git-lfs"
_READ_CHARS = 2**16


class FormatError(ValueError):
    """The content of a file is not what its format requires."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.remedy = remedy


@contextmanager
def open_utf8(path: str) -> Iterator[io.BufferedReader]:
    """Open a file for reading its text, decompressed and in UTF-8.

    A byte order mark of UTF-8 is left in place, so that positions are those of the file.

    Raises:
        FormatError: the file is in a format that is no text.
    """
    with _open_decompressed(path) as file:
        head = file.peek(len(LFS_POINTER))
        check_no_pointer(head)
        for mark, (what, remedy) in OTHER_FORMATS.items():
            if head.startswith(mark):
                raise FormatError(f"it is {what}", remedy)
        if head.startswith(UTF32_MARKS) or b"\0" in head[:2]:  # UTF-16 without a mark, too
            raise FormatError("it is not UTF-8: it begins with zero bytes", "save it as UTF-8")
        yield io.BufferedReader(_FromUtf16(file)) if _has_mark(file) else file


def check_no_pointer(head: bytes) -> None:
    """Raise FormatError if a file begins as a pointer of Git LFS, which clones may have."""
    if head.startswith(LFS_POINTER):
        raise FormatError("it is a pointer of Git LFS, not the data", "run `git lfs pull`")


def is_utf16(path: str) -> bool:
    """Return whether a file begins with a byte order mark of UTF-16."""
    with _open_decompressed(path) as file:
        return _has_mark(file)


def _has_mark(file: io.BufferedReader) -> bool:
    return file.peek(2)[:2] in UTF16_MARKS


@contextmanager
def _open_decompressed(path: str) -> Iterator[io.BufferedReader]:
    if path.lower().endswith(".zst"):
        # Arrow's reader raises for a truncated file. fsspec's, which is zstandard's, just ends.
        with fsspec.open(path, "rb") as file:
            reader = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")
            yield io.BufferedReader(reader)
    else:
        with fsspec.open(path, "rb", compression="infer") as file:
            yield io.BufferedReader(file)


class _FromUtf16(io.RawIOBase):
    """The UTF-8 text of a file in UTF-16."""

    def __init__(self, file: io.BufferedReader) -> None:
        # JSON allows lone surrogates; json.loads reads them with the same error handler.
        self.text = io.TextIOWrapper(file, "utf-16", errors="surrogatepass", newline="")
        self.decoded = b""

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        if not self.decoded:
            self.decoded = self.text.read(_READ_CHARS).encode(errors="surrogatepass")
        count = min(len(target), len(self.decoded))
        target[:count], self.decoded = self.decoded[:count], self.decoded[count:]
        return count
