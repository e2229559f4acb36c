"""Programs that attack the sandbox: to get out of it, or to pass wrongly. "passed" is success.

`tests/evals/sandbox` runs each in three worlds, and `tests.benchmarks.attacks` prints the outcomes.
"""

from dataclasses import dataclass

WORLDS = ("all layers", "no namespaces", "guard alone")


@dataclass(frozen=True)
class Attack:
    """A program, which ends without an exception only if it gets what it wants.

    Attributes:
        program: its source.
        why: what stops it.
        outcome: the verdict.
        tests: the tests that it tries to pass, if any.
        alone: the verdict with the guard alone, if it differs.
    """

    program: str
    why: str
    outcome: str = "failed"
    tests: str = ""
    alone: str = ""

    def expected(self, world: str) -> str:
        """Return the verdict in a world."""
        return (world == "guard alone" and self.alone) or self.outcome


TESTS = """
import math
assert abs(f() - 2) < 0.5
assert all([f() == 2]) and len([f()]) == 1
assert math.isclose(f(), 2)
"""
TIME = "a limit on CPU time, which the server measures"
FILES = "the guard; read-only mounts; Landlock"
NETWORK = "the guard; seccomp; a network namespace"
PROCESSES = "the guard; seccomp; a process namespace"
MEMORY = "the guard; seccomp stops the system calls behind the functions"
SECRET = "a program without tests passes only if an audit hook returns a secret after its end"
APART = "the tests run in another interpreter, which alone reports their end"
DATA = "what the program sends is read as data: constructors of plain types, and numbers of objects"


def escape(program: str, why: str, outcome: str = "violation", **more) -> Attack:
    return Attack(program, why, outcome, **more)


def forgery(program: str, why: str = APART, outcome: str = "failed") -> Attack:
    return Attack(program, why, outcome, TESTS)


ATTACKS: dict[str, Attack] = {
    # Resources
    "endless loop": escape("while True: pass", TIME, "timeout"),
    "a fork bomb": escape("import os\nwhile True: os.fork()", PROCESSES),
    "8 GB at once": escape("x = [0] * 10**9", "a limit on the address space", "memory"),
    "endless output": escape(
        "while True: print('a' * 10**6)", "a limit on file size, 16 MiB; 8,000 characters are kept"
    ),
    "an endless file in the home": escape(
        "f = open('a', 'wb')\nwhile True: f.write(bytes(1 << 20))", "the same limit; tmpfs"
    ),
    # Files
    "reads /etc/passwd": escape("open('/etc/passwd')", FILES),
    "reads the parent's environment": escape(
        "import os; open(f'/proc/{os.getppid()}/environ')", "the guard; Landlock"
    ),
    "lists the parent's directory": escape(
        "import os; os.listdir(f'/proc/{os.getppid()}/cwd')", "the guard; Landlock"
    ),
    "reads its own memory as a file": escape("open('/proc/self/mem', 'rb')", FILES),
    "writes its own memory as a file": escape("open('/proc/self/mem', 'wb')", FILES),
    "makes a directory outside": escape("import os; os.mkdir('/tmp/outside')", FILES),
    "replaces os.lstat and os.readlink, then reads /etc/passwd": escape(
        "import os\nos.lstat = os.readlink = lambda *a, **k: 1 / 0\n"
        "import posixpath\nposixpath.realpath = lambda *a, **k: os.getcwd()\nopen('/etc/passwd')",
        "the guard has copies of the functions of os and posixpath; Landlock",
    ),
    # Network
    "opens a network socket": escape("import socket; socket.socket()", NETWORK),
    "connects to loopback": escape(
        "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9')", NETWORK
    ),
    "sends a datagram to a Unix socket": escape(
        "import socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); "
        "s.sendto(b'x', '/dev/log')",
        NETWORK,
    ),
    "sends over a pair of datagram sockets to an address": escape(
        "import socket; a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); "
        "a.sendto(b'x', '/dev/log')",
        NETWORK,
        "failed",
        alone="violation",
    ),
    # Processes
    "starts a program": escape("import subprocess; subprocess.run(['true'])", PROCESSES),
    "kills its parent": escape("import os; os.kill(os.getppid(), 9)", PROCESSES),
    "limits another process": escape(
        "import resource; resource.prlimit(1, resource.RLIMIT_CPU, (1, 1))", PROCESSES
    ),
    # The interpreter
    "ctypes: system": escape("import ctypes; ctypes.CDLL(None).system(b'true')", MEMORY),
    "ctypes: reads memory": escape("import ctypes; ctypes.string_at(id(1))", MEMORY),
    "ctypes: Py_Exit": escape("import ctypes; ctypes.pythonapi.Py_Exit(100)", MEMORY),
    "ctypes: memmove, memset, cast": escape(
        "import ctypes; ctypes.memmove(ctypes.create_string_buffer(9), id(1), 9)", MEMORY
    ),
    "ctypes under the file name of a library": escape(
        "import ctypes, os\nexec(compile('ctypes.CDLL(None).system', os.__file__, 'exec'))",
        "the guard refuses code with such a name",
    ),
    "ctypes under a library's name, by code.replace": escape(
        "import ctypes, os\ndef f(): return ctypes.CDLL(None)\n"
        "exec(f.__code__.replace(co_filename=os.__file__))",
        "the guard refuses code with such a name",
    ),
    "lets a library look up a C function": Attack(
        "import pkgutil\nrun = pkgutil.resolve_name('ctypes:pythonapi.system')\n"
        "assert run(b'true') == 0",
        "seccomp; the guard trusts libraries",
        alone="passed",
    ),
    "starts a program with the C function behind subprocess": Attack(
        "import _posixsubprocess as p, os, sys, time\nread, write = os.pipe()\n"
        "p.fork_exec([b'/bin/true'], [b'/bin/true'], True, (write,), None, None, -1, -1, -1, -1, "
        "-1, -1, read, write, True, False, 0, None, None, None, -1, None, False)",
        "seccomp; it raises no event for the guard",
        alone="passed",
    ),
    "kills its parent by a descriptor": Attack(
        "import os, signal\nsignal.pidfd_send_signal(os.pidfd_open(os.getppid()), 9)",
        "seccomp; it raises no event for the guard, and a lost server is a violation",
        alone="violation",
    ),
    "lets the kernel signal its parent": escape(
        "import fcntl, os; fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, os.getppid())",
        "the guard; seccomp",
    ),
    "the sandbox's own handle of the C library": escape(
        "import sys; sys._getframe(1).f_locals['prepared'].libc.syscall(39)",
        "no frame of the sandbox has it",
        "failed",
    ),
    "lists all objects": escape("import gc; gc.get_objects()", "the guard"),
    # Ends before its end, without tests
    "sys.exit(0)": Attack("import sys; sys.exit(0)", SECRET),
    "os._exit(0)": Attack("import os; os._exit(0)", SECRET),
    "exit code 100 after printing passed": Attack(
        "import os, sys\nos.write(1, b'passed'); sys.exit(100)", SECRET
    ),
    "raises the sandbox's own event, without tests": Attack(
        "import os, sys\nsys.audit('sandbox.end')\nos._exit(0)", SECRET
    ),
    "runs the sandbox's own code again": Attack(
        "import os, sys\nfrom types import FunctionType\nown = sys._getframe(1)\n"
        "cells = [type((lambda: own).__closure__[0])(v) for v in "
        "[own.f_locals.get(n) for n in own.f_code.co_freevars]]\n"
        "for c, n in zip(cells, own.f_code.co_freevars):\n"
        "    if n == 'program': c.cell_contents = b'pass'\n"
        "    if n == 'leave': c.cell_contents = lambda *_: 1\n"
        "try: FunctionType(own.f_code, own.f_globals, 'run', (), tuple(cells))()\n"
        "except BaseException: pass\nos._exit(0)",
        SECRET,
    ),
    # Pass wrongly
    "writes to every descriptor": forgery(
        """
import os
for descriptor in range(3, 256):
    for text in (b"passed", b"passed stays", bytes(32)):
        try:
            os.write(descriptor, text)
        except OSError:
            pass
os._exit(0)
""",
    ),
    "reads every descriptor and sends back what it finds": forgery(
        """
import os
secrets = []
for descriptor in range(3, 256):
    try:
        os.set_blocking(descriptor, False)
        secrets.append(os.read(descriptor, 64))
    except OSError:
        pass
for descriptor in range(3, 256):
    for secret in secrets:
        try:
            os.write(descriptor, secret)
        except OSError:
            pass
os._exit(0)
"""
    ),
    "searches the sandbox's variables": forgery(
        """
import os, sys
frame, values = sys._getframe(), []
while frame:
    values += [*frame.f_locals.values(), *frame.f_globals.values()]
    frame = frame.f_back
for value in list(values):
    values += [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
for secret in values:
    if isinstance(secret, bytes):
        for descriptor in range(3, 256):
            try:
                os.write(descriptor, secret)
            except OSError:
                pass
os._exit(0)
"""
    ),
    "raises the sandbox's own event": forgery(
        "import os, sys\nsys.audit('sandbox.end')\nos._exit(0)"
    ),
    "an entry in a list of the sandbox's frame": forgery(
        "import functools, os, sys, types\nknown = sys._getframe(1).f_locals['known']\n"
        "known.append((types.SimpleNamespace(update=functools.partial(sys.audit, "
        "'sandbox.end')), {}))\ndef f(): os._exit(0)"
    ),
    "a weak reference's callback": forgery(
        "import sys, weakref\nclass A: pass\na = A()\n"
        "r = weakref.ref(a, lambda _: sys.audit('sandbox.end'))\n"
        "def f():\n    global a\n    a = None\n    import os; os._exit(0)"
    ),
    "exits from the tests": forgery("def f():\n    import sys\n    sys.exit(0)"),
    "ends the process from the tests": forgery("def f():\n    import os\n    os._exit(0)"),
    "ends the process, and the tests accept any exception": Attack(
        "def f():\n    import os\n    os._exit(0)", APART, tests="try:\n    f()\nexcept:\n    pass"
    ),
    "ends before the tests": forgery("def f(): return 1\nraise SystemExit"),
    "opens a string that would hide the tests": forgery("def f(): return 1\nx = '''"),
    "replaces abs, all, len, math.isclose": forgery(
        "import builtins, math\n"
        "builtins.abs, builtins.all, builtins.len = lambda _: 0, lambda _: True, lambda _: 1\n"
        "math.isclose = lambda *_, **__: True\ndef f(): return 1"
    ),
    "replaces what assert raises": forgery(
        "import builtins\n"
        "builtins.AssertionError = builtins.BaseException = KeyError\ndef f(): return 1"
    ),
    "replaces compile, exec, sys.audit": forgery(
        "import builtins, sys\nbuiltins.compile = lambda *_, **__: 'pass'\n"
        "builtins.exec = builtins.isinstance = lambda *_: None\n"
        "sys.audit = sys.excepthook = sys.__excepthook__ = lambda *_: None\ndef f(): return 1"
    ),
    "puts another module into sys.modules": forgery(
        "import sys, types\n"
        "sys.modules['math'] = types.SimpleNamespace(isclose=lambda *a, **k: True)\n"
        "def f(): return 1"
    ),
    "reads the expected value in the caller's frame": Attack(
        "import sys\ndef f():\n    frame = sys._getframe()\n    while frame:\n"
        "        for names in (frame.f_locals, frame.f_globals):\n"
        "            if 'expected' in names: return names['expected']\n"
        "        frame = frame.f_back",
        APART,
        tests="expected = 41\nassert f() == expected",
    ),
    "an object that equals everything": forgery(
        "class A:\n    __eq__ = __lt__ = __gt__ = __le__ = __ge__ = lambda *_: True\n"
        "    __sub__ = __rsub__ = __abs__ = lambda *_: 0\n"
        "    __float__ = lambda _: 2.0\n    __hash__ = lambda _: 2\ndef f(): return A()",
        "operators between objects of the program and plain data are the tests' own",
    ),
    "an integer that equals everything": forgery(
        "class A(int):\n    __eq__ = __lt__ = lambda *_: True\n"
        "    __sub__ = __abs__ = lambda *_: 0\ndef f(): return A(1)",
        "a subclass of a number is sent as that number",
    ),
    "a list that equals everything": Attack(
        "class A(list):\n    __eq__ = lambda *_: True\ndef f(): return A([1])",
        "a subclass of a container is compared as that container",
        tests="assert f() == [2]",
    ),
    "unittest.mock.ANY": forgery("from unittest.mock import ANY\ndef f(): return ANY"),
    "takes names of the tests from their function": Attack(
        "def f(g): return g.__globals__['expected']",
        "the program may call what the tests give it, and no more",
        tests="expected = 5\ndef g(): pass\nassert f(g) == expected",
    ),
    "a message that makes the tests call os.system": forgery(
        "import os\nclass A:\n    def __reduce__(self): return os._exit, (0,)\n"
        "import evals.sandbox.wire as wire, pickle\n"
        "def f():\n    wire._dump = lambda m: pickle.dumps(('returned', A(), None), 5)",
        DATA,
    ),
    "a message that changes what a fraction equals": Attack(
        "import evals.sandbox.wire as wire\ndef f():\n"
        "    body = (b'\\x80\\x05(\\x8c\\x08returnedcfractions\\nFraction\\n'\n"
        "        b'N}\\x8c\\x06__eq__cbuiltins\\nbool\\ns\\x86b'\n"
        "        b'K\\x01\\x85RNt.')\n    wire._dump = lambda m: body",
        DATA,
        tests="assert f() == 2",
    ),
    "a message that is no message": forgery(
        "import evals.sandbox.wire as wire\ndef f(): wire._dump = lambda m: b'passed'", DATA
    ),
    "a message longer than memory": forgery(
        "import os, evals.sandbox.wire as wire\n"
        "def f(): os.write(wire._peer.target, b'\\xff' * 8); os._exit(0)",
        DATA,
    ),
    "an answer before the question": forgery(
        "import evals.sandbox.wire as wire\ndef f(): return 2.5\n"
        "for _ in range(50): wire._write(wire._dump(('returned', 2, None)))",
        DATA,
    ),
}
