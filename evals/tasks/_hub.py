"""Rows of a benchmark, from a published file or from a data set on the Hugging Face hub.

If a folder of published files is given, only sets that are published nowhere but on the hub are
read from there. Rows are dicts with checked fields, and come with a location for error messages.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evals.tasks._files import Fields, check, read_jsonl

Row = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """A published file, and the same rows on the hub.

    Attributes:
        file: path in the folder of published files; JSON Lines for `rows`.
        hub: name of the data set on the Hugging Face hub.
        revision: commit of the data set.
        split: split of the data set.
        config: configuration of the data set; None if it has only one.
        names: field on the hub -> field in the file, if they differ.
        hub_only: True if the authors publish on the hub alone. A file in the folder is preferred.
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
        """Return the file to read, or None for the hub."""
        path = directory / self.file if directory else None
        return None if path is None or (self.hub_only and not path.exists()) else path


def rows(source: Source, directory: Path | None, fields: Fields) -> Iterator[tuple[str, Row]]:
    """Yield (location, row) of a JSON Lines file, or of the hub."""
    path = source.path(directory)
    if path is None:
        yield from hub_rows(source, fields)
    else:
        yield from ((f"{path}, row {n}", row) for n, row in enumerate(read_jsonl(path, fields), 1))


def worked_examples(source: Source, directory: Path | None, fields: Fields) -> list[Row]:
    """Return rows for worked examples; none if their file is missing, since chat needs none."""
    path = source.path(directory)
    if path is not None and not path.exists():
        return []
    return [row for _, row in rows(source, directory, fields)]


def hub_rows(source: Source, fields: Fields) -> Iterator[tuple[str, Row]]:
    """Yield (location, row) of the data set on the hub."""
    name = f"{source} ({source.split})"
    for number, row in enumerate(_load(source), start=1):
        row = {source.names.get(name, name): value for name, value in row.items()}
        check(row, fields, f"{name}, row {number}")
        yield f"{name}, row {number}", row


def configs(source: Source) -> list[str]:
    """Return the names of the configurations of the data set on the hub."""
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
        f"cannot load data set {source.hub} at {source.revision[:7]} from the Hugging Face hub "
        f"({reason}); give a folder that holds {source.file} (--benchmark-dir or OTR_BENCHMARKS)"
    )
