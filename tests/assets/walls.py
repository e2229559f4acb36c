"""Worlds for the sandbox: what its server says before it starts takes walls away.

In: statements. Out: a sandbox whose server runs them first.
"""

from evals.sandbox import runner

WITHOUT_NAMESPACES = "walls.enter_namespaces = lambda libc: False; "
WITHOUT_GUARD = "guard.install = lambda home, readable: []; "
WITHOUT_LANDLOCK_AND_SECCOMP = (
    "walls.confine_files = lambda libc, home, rules: False; "
    "walls.filter_system_calls = lambda libc, code: False; "
)
WITHOUT_ANY = WITHOUT_NAMESPACES + WITHOUT_LANDLOCK_AND_SECCOMP


def patch(monkeypatch, statements: str) -> None:
    """Changes the sandbox inside its own interpreter, before it builds its walls."""
    known = "from evals.sandbox import guard, isolation as walls; "
    changed = f"{known}{statements}sys.path.pop"
    monkeypatch.setattr(runner, "SERVER", runner.SERVER.replace("sys.path.pop", changed))
