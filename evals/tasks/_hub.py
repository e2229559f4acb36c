"""Where the rows of a benchmark come from: a published file, or a data set of the Hugging Face hub.

In: a `Source` and the folder of published files, None for the hub. Out: rows as dicts with their
places, fields checked. With a folder nothing is read from the hub, but for sets that are published
there alone.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evals.tasks._files import Fields, check, read_jsonl

Row = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """The same rows in two places.

    Attributes:
        file: within the folder of published files; one JSON object a line for `rows`.
        hub: name of the data set on the Hugging Face hub.
        revision: commit of that data set.
        split: of that data set.
        config: of that data set; None for its only one.
        names: field on the hub -> field in the file, where they differ.
        hub_only: the hub is where the authors publish it; a file in the folder comes first.
    """

    file: str
    hub: str
    revision: str
    split: str = "test"
    config: str | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    hub_only: bool = False

    def __str__(self) -> str:
        return f"{self.hub}@{self.revision[:7]}"

    def path(self, directory: Path | None) -> Path | None:
        """The file to read, None for the hub."""
        path = directory / self.file if directory else None
        return None if path is None or (self.hub_only and not path.exists()) else path


def rows(source: Source, directory: Path | None, fields: Fields) -> Iterator[tuple[str, Row]]:
    """Yields (place, row) of a file with one JSON object a line, or of the hub."""
    path = source.path(directory)
    if path is None:
        yield from hub_rows(source, fields)
    else:
        yield from ((f"{path}, row {n}", row) for n, row in enumerate(read_jsonl(path, fields), 1))


def worked(source: Source, directory: Path | None, fields: Fields) -> list[Row]:
    """Rows for worked examples; none where the folder lacks their file, since a chat needs none."""
    path = source.path(directory)
    if path is not None and not path.exists():
        return []
    return [row for _, row in rows(source, directory, fields)]


def hub_rows(source: Source, fields: Fields) -> Iterator[tuple[str, Row]]:
    """Yields (place, row) of the data set on the hub."""
    place = f"{source.hub}@{source.revision[:7]} ({source.split})"
    for number, row in enumerate(_load(source), start=1):
        row = {source.names.get(name, name): value for name, value in row.items()}
        check(row, fields, f"{place}, row {number}")
        yield f"{place}, row {number}", row


def configs(source: Source) -> list[str]:
    """The configurations of the data set on the hub."""
    import datasets

    try:
        return sorted(datasets.get_dataset_config_names(source.hub, revision=source.revision))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise _unreachable(source, error) from error


def _load(source: Source) -> Any:
    import datasets

    try:
        return datasets.load_dataset(
            source.hub, source.config, split=source.split, revision=source.revision
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise _unreachable(source, error) from error


def _unreachable(source: Source, error: Exception) -> ValueError:
    reason = str(error).strip().partition("\n")[0]
    return ValueError(
        f"data set {source.hub} at {source.revision[:7]} can't be had from the Hugging Face hub "
        f"({reason}); give a folder that holds {source.file} (--benchmark-dir or OTR_BENCHMARKS)"
    )
