"""Worlds for the sandbox: what is said before its child starts takes walls away.

In: statements. Out: a sandbox whose child runs them first.
"""

from evals import sandbox

WITHOUT_NAMESPACES = "walls.enter_namespaces = lambda libc: False; "
WITHOUT_GUARD = "sandbox_child.guard.install = lambda home, readable: []; "
WITHOUT_LANDLOCK_AND_SECCOMP = (
    "walls.confine_files = lambda libc, home, readable: False; "
    "walls.filter_system_calls = lambda libc: False; "
)
WITHOUT_ANY = WITHOUT_NAMESPACES + WITHOUT_LANDLOCK_AND_SECCOMP


def patch(monkeypatch, statements: str) -> None:
    """Changes the sandbox inside its own interpreter, before it builds its walls."""
    changed = f"from evals import sandbox_walls as walls; {statements}sys.path.pop"
    monkeypatch.setattr(sandbox, "CHILD", sandbox.CHILD.replace("sys.path.pop", changed))
