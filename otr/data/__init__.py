"""From the records of a corpus to packed batches.

Read these in order: `conversations` (the forms of a record), `chat_template` (from a conversation
to a text, and where its answers stand), `examples` (token ids and targets), `packing`.

A packed batch has three columns, [N, S] each:

- `input_ids`, int32: token ids, 0 in padding;
- `loss_mask`, bool: True for the target tokens: by default the assistant's and the token that ends
  its turn;
- `segment_ids`, int32: number of the token's example within its packed row, from 1; 0 in padding.

Shapes: N packed rows, S sequence length (tokens per packed row).
"""

from otr.data.conversations import (
    FORMS,
    Conversation,
    PlainText,
    Rejected,
    messages_of,
    read_record,
)
from otr.data.examples import (
    Example,
    RejectedRecord,
    Tokenized,
    encode,
    tokenize,
    tokenize_batches,
)
from otr.data.packing import count_rows, pack

__all__ = [
    "FORMS",
    "Conversation",
    "Example",
    "PlainText",
    "Rejected",
    "RejectedRecord",
    "Tokenized",
    "count_rows",
    "encode",
    "messages_of",
    "pack",
    "read_record",
    "tokenize",
    "tokenize_batches",
]
