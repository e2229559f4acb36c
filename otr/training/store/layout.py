"""What a packed store is on disk.

A store is a directory, whose name is a digest of all that decides its rows: the text, the options,
the tokenizer with its chat template, and the code. It holds

- `part-00000.rows`, ...: one file per part of the corpus, an array of packed rows (`row_dtype`);
- `part-00000.json`, ...: what the part holds (`Part`), written after its rows;
- `index.json`: the whole (`Index`), written last. A directory without it is being made, or its
  making was interrupted; what is complete in it is used again;
- `statistic-NAME-00000.npy`, ...: a value per token, if a run needed it (`statistics`).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

FORMAT = 1
INDEX = "index.json"


def row_dtype(sequence_length: int) -> np.dtype:
    """Return the type of a packed row: token ids, segments, targets [S] each, and a checksum.

    Segments number the examples of a row from 1; 0 is padding. A target is 1, other tokens are 0.
    The checksum is the CRC-32 of the three arrays' bytes.
    """
    shape = (sequence_length,)
    return np.dtype(
        [
            ("input_ids", "<i4", shape),
            ("segment_ids", "<u2", shape),
            ("loss_mask", "u1", shape),
            ("checksum", "<u4"),
        ]
    )


@dataclass(frozen=True)
class Part:
    """One file of packed rows."""

    name: str
    """Of the file, without `.rows`."""
    source: str
    """The configured path that it is a part of."""
    rows: int
    tokens: int
    """Tokens of examples, without padding."""
    trained_tokens: int
    examples: int
    audit: str
    """JSON, see `otr.training.audit`."""


@dataclass(frozen=True)
class Index:
    """The content of a store."""

    sequence_length: int
    parts: tuple[Part, ...]

    @property
    def rows(self) -> int:
        """Number of packed rows."""
        return sum(part.rows for part in self.parts)

    def rows_by_source(self) -> dict[str, int]:
        """Return the number of rows of each source, in the order of the parts."""
        counts: dict[str, int] = {}
        for part in self.parts:
            counts[part.source] = counts.get(part.source, 0) + part.rows
        return counts

    def to_json(self) -> str:
        """Return the index as JSON."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n"


def index_from(text: str, path: str) -> Index:
    """Return the index that `Index.to_json` wrote.

    Args:
        text: JSON.
        path: of the store, for the message.

    Raises:
        ValueError: it was written by another version of otr.
    """
    content: Mapping[str, Any] = json.loads(text)
    if content.get("format") != FORMAT:
        raise ValueError(
            f"{path} is a packed store of format {content.get('format')}, this otr has {FORMAT}: "
            "remove it, and the corpus is packed again"
        )
    parts = tuple(Part(**part) for part in content["parts"])
    return Index(content["sequence_length"], parts)
