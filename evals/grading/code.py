"""The verdict on an answer with code: its program is run in the sandbox with the tests.

`evals.grading.programs` extracts the program. It reads the answer's blocks (`fences`), finds those
that define what the tests use (`definitions`) or complete the prompt (`function_bodies`), and takes
the statements (`statements`) that are needed (`dependencies`).
"""

import builtins
from functools import lru_cache

from evals.benchmark import Item
from evals.grading.programs import extract_code
from evals.grading.statements import Source
from evals.sandbox import runner

CPU_SECONDS = 5.0
MODULE = "program"  # the name of the module, so that it is not run as `__main__`


def code_passes(item: Item, text: str) -> bool:
    """Return whether the code in `text` passes `item.tests` in the sandbox.

    `item.meta` may have "code_prompt", the head of the function to complete, "cpu_seconds", the CPU
    time that the program and its tests may each take, and "memory_mb", the memory in MiB.
    """
    meta = item.meta
    program = extract_code(text, meta.get("code_prompt", ""), names_in_tests(item.tests))
    return runner.run(
        program,
        tests=item.tests,
        cpu_seconds=meta.get("cpu_seconds", CPU_SECONDS),
        memory_mb=meta.get("memory_mb", runner.MEMORY_MB),
        name=MODULE,
    ).passed


@lru_cache(4096)
def names_in_tests(tests: str) -> tuple[str, ...]:
    """Return the names that tests use and neither define nor import; () if they do not parse."""
    source = Source.parse(tests.replace("\r\n", "\n"))
    if source.text.split() != tests.split():
        return ()
    bound = {name for statement in source.statements for name in statement.binds}
    used = {name for statement in source.statements for name in statement.uses}
    return tuple(sorted(used - bound - set(vars(builtins)) - {"__name__", "__file__"}))
