"""Files and data sets that hold a corpus, and reading their records; no Ray here.

`DataConfig.paths` may name files, globs, directories, and directories written by
`datasets.save_to_disk`, each local or at a URI that fsspec knows, and ``hf:NAME[:CONFIG[:SPLIT]]``.
`list_chunks` splits them into `SourceChunk`s, `read_numbered` and `read_records` read one, and
`place_of` says where a record stands.

Records are JSON text (bytes), not columns: records of one corpus may differ in their fields, and a
broken line is just text that does not parse.

Which files. A file that is named itself is always read. Of a directory or glob, those with a known
suffix are read, in the order of their names, except hidden ones, names with a first _, and those
that describe a data set (dataset_infos.json, dataset_info.json, dataset_dict.json, state.json). If
names of files or of their directories tell splits, such as train-00000-of-00001.parquet,
test.jsonl or val/0.json, only those of `DataConfig.split` are read, and files without a split count
as train (see `splits`).

Which records, by suffix; all but Parquet and Arrow files may also have .gz or .zst:

- .jsonl, .ndjson, .json: one record per line, with or without a comma after it. Blank lines do not
  count. A line that is no JSON, or not UTF-8, is a broken record.
- The same files may instead hold one JSON array of records, on one line or on many, or a record
  that is spread over lines, or several of these. A .json file may also hold an object with one list
  of objects, such as {"data": [...]}: these are the records. The beginning of a file tells which
  form it has. In these forms, nothing can be read after an error.
- .csv, .tsv: a row with the names of the columns, then one record per row. Cells are text; one in
  double quotes may have delimiters and line ends. A row with more or fewer cells than there are
  names is a broken record that says so.
- .parquet, .arrow (a stream or a file), and data sets of the hub: one record per row. These formats
  fill absent fields with null, so fields that are null are left out, at every depth. Bytes are
  taken for text.

Text is UTF-8, with or without a byte order mark, or UTF-16 with one. Files in UTF-16 without one
and in UTF-32 can't be read.
"""

from otr._deprecated import renamed_names
from otr.training.sources.listing import (
    SourceChunk,
    absolute_path,
    corpus_identity,
    file_remarks,
    left_out,
    list_chunks,
)
from otr.training.sources.reading import (
    Record,
    UnreadableSource,
    place_of,
    read_numbered,
    read_records,
)

__all__ = [
    "Record",
    "SourceChunk",
    "UnreadableSource",
    "absolute_path",
    "corpus_identity",
    "file_remarks",
    "left_out",
    "list_chunks",
    "place_of",
    "read_numbered",
    "read_records",
]

__getattr__ = renamed_names(__name__, pieces="list_chunks", rows="read_records")
