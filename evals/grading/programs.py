"""Extraction of the program from a model's answer.

The program has the statements that the tests need: the functions that they call, from the last
block that defines them, with the imports, helpers and values that these use, from any block. Other
statements, such as examples and what stands under `if __name__ == "__main__"`, are left out.
"""

import re
from collections.abc import Sequence

from evals.grading.definitions import defining_source, last_defining
from evals.grading.dependencies import needed_statements
from evals.grading.fences import fenced_blocks, text_before_fences, with_separate_fences
from evals.grading.function_bodies import completed, starts_with_body
from evals.grading.statements import STATEMENT_START, Source, parses
from evals.grading.thoughts import after_thinking

_FUNCTION = re.compile(r"^(?:async\s+)?def\s+(\w+)", re.MULTILINE)


def extract_code(text: str, prompt: str = "", names: Sequence[str] = ()) -> str:
    """Return the program in a model's answer.

    Args:
        text: the whole answer. Blocks may be fenced or not, closed or not; what does not parse at
            their end is cut off. What a model writes while it thinks does not count.
        prompt: the code to complete, if any. The program may use what stands above its last
            function. An answer that does not define that function is taken as its body.
        names: names that the tests use; by default the last function of the prompt. Without any,
            the program is the last block that has a function, or the last block, or the text.
    """
    text = with_separate_fences(after_thinking(text).replace("\r\n", "\n"))
    blocks = fenced_blocks(text)
    headers = list(_FUNCTION.finditer(prompt))
    wanted = tuple(names) or tuple(header.group(1) for header in headers[-1:])
    if not wanted:
        return _without_names(text, blocks)
    above = Source.parse(prompt[: headers[-1].start()]) if headers else Source()
    # Tests may call what stands above the function, too, which an answer need not repeat.
    own = set(wanted) - above.defined() or set(wanted)
    sources = [defining_source(block, own) for block in blocks]
    before_fences = text_before_fences(text)
    chosen = None
    if not any(source.defined() >= own for source in sources):
        starts_body = bool(headers) and starts_with_body(before_fences, own)
        if not starts_body:
            sources += [defining_source(each, own) for each in dict.fromkeys((before_fences, text))]
        if headers and not any(source.defined() >= own for source in sources):
            bodies = [before_fences, *blocks] if starts_body else [*blocks, before_fences]
            chosen = completed(prompt, bodies, headers[-1].group(1))
            if chosen is None:
                sources.append(defining_source(text, own))
    if chosen is None:
        chosen = last_defining(sources, own)
    if chosen is None:
        return prompt + _without_names(text, blocks) if headers else _without_names(text, blocks)
    others = [source for source in sources if source is not chosen]
    statements = needed_statements([above, *others, chosen], wanted)
    return "\n".join(statement.text for statement in statements) + "\n"


def _without_names(text: str, blocks: Sequence[str]) -> str:
    """Return the last block with a function, else the last, else the text from its code on."""
    if blocks:
        return ([block for block in blocks if _FUNCTION.search(block)] or list(blocks))[-1]
    start = STATEMENT_START.search(text)
    if start is None or parses(text):
        return text
    return Source.parse(text[start.start() :]).text or text[start.start() :]
