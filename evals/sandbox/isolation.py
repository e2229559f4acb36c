"""The kernel's isolation layers for a program: namespaces, Landlock, seccomp, resource limits.

None of them needs root. Each function returns whether the machine offers its layer; what it applies
holds for the calling process and its children, and cannot be undone. Linux on x86-64 and ARM64;
standard library only.

The layers cover different things, and a machine may offer only some:

- Namespaces give the program its own processes, network and mounts, with all files read-only.
- Landlock restricts which files it may read and change, but not sockets.
- The seccomp filter (`seccomp.py`) allows the system calls that Python needs: no new processes, no
  signals, no sockets.
"""

import ctypes
import os
import resource
import struct
from collections.abc import Sequence

NOBODY = 65534
MAX_THREADS = 64
SERVER_PROCESSES = 3  # counted by the kernel with the program's threads, in namespaces
MAX_FILE_BYTES = 16 << 20
MAX_HOME_BYTES = 64 << 20
MAX_OPEN_FILES = 64
TICKS_FACTOR = 4  # the kernel's limit on CPU time counts ticks, too many on a busy machine
# Besides Python's own folders: shared libraries, time zones, and machine information they read.
READABLE = (
    *("/usr", "/lib", "/lib64", "/bin", "/etc/localtime", "/etc/ld.so.cache", "/etc/mime.types"),
    *("/proc/cpuinfo", "/proc/meminfo", "/sys/devices/system/cpu"),
)
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")

# linux/sched.h, linux/mount.h, linux/prctl.h
CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER = 0x20000, 0x8000000, 0x10000000
CLONE_NEWPID, CLONE_NEWNET = 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE = 442, -100, 0x8000
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NODEV = 1, 4
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
CAPABILITY_VERSION_3 = 0x20080522

# linux/landlock.h
SYS_LANDLOCK_CREATE, SYS_LANDLOCK_ADD, SYS_LANDLOCK_RESTRICT = 444, 445, 446
LANDLOCK_EXECUTE, LANDLOCK_WRITE_FILE, LANDLOCK_REMOVE_AND_MAKE = 1, 1 << 1, 0x1FF << 4
LANDLOCK_READ_FILE, LANDLOCK_READ_DIR = 1 << 2, 1 << 3
LANDLOCK_REFER, LANDLOCK_TRUNCATE = 1 << 13, 1 << 14

PR_SECCOMP_FILTER = 2  # linux/seccomp.h


def load_c_library() -> ctypes.CDLL:
    """Load the C library with the functions used here, so that children need not look them up."""
    libc = ctypes.CDLL(None, use_errno=True)
    for name in ("unshare", "setns", "mount", "prctl", "capset", "syscall"):
        getattr(libc, name)
    return libc


def enter_namespaces(libc: ctypes.CDLL) -> bool:
    """Enter new user, mount, process, network and IPC namespaces, as the user nobody.

    The process namespace takes effect for the next child. A child tries all of it first: some
    kernels allow the namespaces but not the mapping of the user, without which they are useless.
    """
    trial = os.fork()
    if trial == 0:
        os._exit(not _enter(libc))
    return os.waitpid(trial, 0)[1] == 0 and _enter(libc)


def _enter(libc: ctypes.CDLL) -> bool:
    uid, gid = os.getuid(), os.getgid()
    flags = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC
    # An earlier change of user made root the owner of /proc/self; this reverts it.
    libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
    if libc.unshare(flags) != 0:
        return False
    try:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{NOBODY} {uid} 1"),
            ("gid_map", f"{NOBODY} {gid} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    except OSError:
        return False
    return True


def new_process_namespace(libc: ctypes.CDLL) -> None:
    """Put the next child in a new process namespace. Call after `enter_namespaces`.

    Raises:
        OSError: the kernel refuses one more namespace.
    """
    if libc.unshare(CLONE_NEWPID) != 0:
        raise OSError(ctypes.get_errno(), "could not create a process namespace")


def own_process_namespace(libc: ctypes.CDLL) -> None:
    """Put the next child in this process's own namespace, from which a new one can be created.

    Raises:
        OSError: the kernel refuses.
    """
    own = os.open("/proc/self/ns/pid", os.O_RDONLY)
    failed = libc.setns(own, CLONE_NEWPID) != 0
    os.close(own)
    if failed:
        raise OSError(ctypes.get_errno(), "could not return to the server's process namespace")


def mount_read_only(libc: ctypes.CDLL) -> bool:
    """Make all files read-only and all devices but `DEVICES` unusable."""
    return (
        libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None) == 0
        and _set_mount(libc, "/", AT_RECURSIVE, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV, 0) == 0
        and all(
            libc.mount(device.encode(), device.encode(), None, MS_BIND, None) == 0
            and _set_mount(libc, device, 0, 0, MOUNT_ATTR_NODEV) == 0
            for device in DEVICES
        )
    )


def mount_home(libc: ctypes.CDLL, home: str) -> bool:
    """Mount a small tmpfs on `home`, in new mount and IPC namespaces."""
    options = f"size={MAX_HOME_BYTES},mode=700".encode()
    return (
        libc.unshare(CLONE_NEWNS | CLONE_NEWIPC) == 0
        and libc.mount(b"tmpfs", home.encode(), b"tmpfs", MS_NOSUID | MS_NODEV, options) == 0
    )


def _set_mount(libc: ctypes.CDLL, path: str, flags: int, add: int, remove: int) -> int:
    request = (ctypes.c_uint64 * 4)(add, remove, 0, 0)  # struct mount_attr
    return libc.syscall(
        SYS_MOUNT_SETATTR, AT_FDCWD, path.encode(), flags, request, ctypes.c_size_t(32)
    )


def limit_resources(
    cpu_seconds: int, memory_bytes: int, *, used_seconds: int = 0, for_good: bool = True
) -> None:
    """Limit CPU time, memory, file size and open files.

    The limit on CPU time only matters if the server fails, which measures the time itself.

    Args:
        cpu_seconds: CPU time from now on.
        memory_bytes: address space.
        used_seconds: CPU time that this process has already used.
        for_good: whether the process may never raise the limits again.
    """
    for kind, value in (
        (resource.RLIMIT_CPU, used_seconds + TICKS_FACTOR * cpu_seconds),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, MAX_FILE_BYTES),
        (resource.RLIMIT_NOFILE, MAX_OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        _limit(kind, value, for_good)


def limit_processes(threads: int | None) -> None:
    """Limit the threads and processes for good, unless None."""
    if threads is not None:
        _limit(resource.RLIMIT_NPROC, threads, for_good=True)


def _limit(kind: int, value: int, for_good: bool) -> None:
    """Set a soft limit, at most the hard one; `for_good` sets the hard limit to the same value."""
    _, hard = resource.getrlimit(kind)
    bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (bound, bound if for_good else hard))


def drop_privileges(libc: ctypes.CDLL) -> None:
    """Give up all capabilities, and those that executing a file could grant."""
    # struct __user_cap_header {version, pid} and two times {effective, permitted, inheritable}
    libc.capset((ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)())
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


class FileRules:
    """Landlock rights on files outside the home; prepared once, for `apply_landlock`.

    Attributes:
        readable: real paths that programs may read, of those given that exist.
        rights: all rights that this kernel's Landlock governs; 0 without Landlock.
        rules: (descriptor, rights) of each readable path and each device.
    """

    def __init__(self, libc: ctypes.CDLL, readable: Sequence[str]) -> None:
        self.readable = tuple(os.path.realpath(path) for path in readable if os.path.exists(path))
        version = libc.syscall(SYS_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)
        reading = LANDLOCK_READ_FILE | LANDLOCK_READ_DIR
        rights = reading | LANDLOCK_EXECUTE | LANDLOCK_WRITE_FILE | LANDLOCK_REMOVE_AND_MAKE
        rights |= LANDLOCK_REFER if version >= 2 else 0
        rights |= LANDLOCK_TRUNCATE if version >= 3 else 0
        file_rights = rights & (LANDLOCK_READ_FILE | LANDLOCK_WRITE_FILE | LANDLOCK_TRUNCATE)
        self.rights = rights if version >= 1 else 0
        self.rules = []
        granted = [(path, reading) for path in self.readable]
        granted += [(device, rights) for device in DEVICES if os.path.exists(device)]
        for path, right in granted:
            applicable = rights if os.path.isdir(path) else file_rights
            self.rules.append((os.open(path, os.O_PATH), right & applicable))


def apply_landlock(libc: ctypes.CDLL, home: str, files: FileRules) -> bool:
    """Allow changes beneath `home` and the uses in `files`; refuse all other files and executing.

    Call after `drop_privileges`. Closes the descriptors of `files`.
    """
    home_rule = (os.open(home, os.O_PATH), files.rights & ~LANDLOCK_EXECUTE)
    ruleset = libc.syscall(
        SYS_LANDLOCK_CREATE, struct.pack("Q", files.rights), ctypes.c_size_t(8), ctypes.c_uint32(0)
    )
    for descriptor, rights in (home_rule, *files.rules):
        rule = struct.pack("=Qi", rights, descriptor)
        libc.syscall(SYS_LANDLOCK_ADD, ruleset, 1, rule, ctypes.c_uint32(0))
        os.close(descriptor)
    if ruleset < 0:
        return False
    applied = libc.syscall(SYS_LANDLOCK_RESTRICT, ruleset, ctypes.c_uint32(0)) == 0
    os.close(ruleset)
    return applied


def apply_seccomp(libc: ctypes.CDLL, code: bytes | None) -> bool:
    """Install the filter of `seccomp.build`. Call after `drop_privileges`."""
    if code is None:
        return False
    instructions = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(instructions))
    return libc.prctl(PR_SET_SECCOMP, PR_SECCOMP_FILTER, program, 0, 0) == 0
