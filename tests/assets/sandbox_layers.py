"""Statements that take isolation layers away from the sandbox, as on a less able machine."""

from evals.sandbox import runner

WITHOUT_NAMESPACES = "isolation.enter_namespaces = lambda libc: False; "
WITHOUT_GUARD = "guard.install = lambda home, readable: []; "
WITHOUT_LANDLOCK_AND_SECCOMP = (
    "isolation.apply_landlock = lambda libc, home, files: False; "
    "isolation.apply_seccomp = lambda libc, code: False; "
)
WITHOUT_KERNEL_LAYERS = WITHOUT_NAMESPACES + WITHOUT_LANDLOCK_AND_SECCOMP


def patch(monkeypatch, statements: str) -> None:
    """Run statements in the sandbox's fork server before it starts to serve."""
    changed = f"from evals.sandbox import guard, isolation; {statements}sys.path.pop"
    monkeypatch.setattr(runner, "SERVER", runner.SERVER.replace("sys.path.pop", changed))


def enter(world: str, monkeypatch) -> None:
    """Take away the layers that are missing in one of `attacks.WORLDS`."""
    missing = {"no namespaces": WITHOUT_NAMESPACES, "guard alone": WITHOUT_KERNEL_LAYERS}
    if world in missing:
        patch(monkeypatch, missing[world])
