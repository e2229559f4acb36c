"""The kernel's walls around a program: namespaces, Landlock, a filter of system calls, limits.

In: the C library and the folder that stays writable. Out: True where a wall stands, False where the
machine does not offer it (none needs root). Each applies to the calling process and what it starts,
and can't be taken back. Linux on x86-64 and ARM64; standard library only.
"""

import ctypes
import os
import resource
import struct
from collections.abc import Sequence

NOBODY = 65534
MAX_THREADS = 16
SERVER_PROCESSES = 2  # that the kernel counts with a program's threads, in namespaces
MAX_FILE_BYTES = 16 << 20
MAX_HOME_BYTES = 64 << 20
MAX_OPEN_FILES = 64
# Besides Python's own folders: other libraries, time zones, and what these read of the machine.
READABLE = (
    *("/usr", "/lib", "/lib64", "/bin", "/etc/localtime", "/etc/ld.so.cache", "/etc/mime.types"),
    *("/proc/cpuinfo", "/proc/meminfo", "/sys/devices/system/cpu"),
)
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
AF_UNIX = 1

# linux/sched.h, linux/mount.h, linux/prctl.h
CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER = 0x20000, 0x8000000, 0x10000000
CLONE_NEWPID, CLONE_NEWNET, CLONE_THREAD = 0x20000000, 0x40000000, 0x10000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE = 442, -100, 0x8000
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NODEV = 1, 4
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
CAPABILITY_VERSION_3 = 0x20080522

# linux/landlock.h: rights to execute, write, read and change files, by the ABI that knows them
SYS_LANDLOCK_CREATE, SYS_LANDLOCK_ADD, SYS_LANDLOCK_RESTRICT = 444, 445, 446
LANDLOCK_EXECUTE, LANDLOCK_WRITE_FILE, LANDLOCK_REMOVE_AND_MAKE = 1, 1 << 1, 0x1FF << 4
LANDLOCK_READ_FILE, LANDLOCK_READ_DIR = 1 << 2, 1 << 3
LANDLOCK_REFER, LANDLOCK_TRUNCATE = 1 << 13, 1 << 14

# linux/seccomp.h, linux/bpf_common.h, linux/audit.h
SECCOMP_MODE_FILTER, SECCOMP_ALLOW, SECCOMP_ERRNO = 2, 0x7FFF0000, 0x50000
BPF_LOAD, BPF_IF_EQUAL, BPF_IF_BITS, BPF_IF_AT_LEAST, BPF_RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
AT_NUMBER, AT_ARCHITECTURE, AT_FIRST_ARGUMENT = 0, 4, 16
EPERM, ENOSYS = 1, 38
X32_SYSCALLS = 0x40000000
# architecture: its audit number; clone; socket and prlimit64, which have one first argument that is
# not refused; and what is refused whatever its arguments, each line in the order of the comment:
# fork, vfork, execve, execveat, ptrace, process_vm_readv, process_vm_writev, pidfd_getfd,
# io_uring_setup, unshare, setns, connect, bind, add_key, request_key, keyctl,
# kill, tkill, tgkill, rt_sigqueueinfo, rt_tgsigqueueinfo, pidfd_send_signal
SYSTEM_CALLS = {
    "x86_64": (
        0xC000003E,
        56,
        ((41, AF_UNIX), (302, 0)),
        (
            *(57, 58, 59, 322, 101, 310, 311, 438, 425, 272, 308, 42, 49, 248, 249, 250),
            *(62, 200, 234, 129, 297, 424),
        ),
    ),
    "aarch64": (
        0xC00000B7,
        220,
        ((198, AF_UNIX), (261, 0)),
        (
            *(221, 281, 117, 270, 271, 438, 425, 97, 268, 203, 200, 217, 218, 219),
            *(129, 130, 131, 138, 240, 424),
        ),
    ),
}
SYS_CLONE3 = 435


def c_library() -> ctypes.CDLL:
    """Its functions are looked up now, which a child would do again and again."""
    libc = ctypes.CDLL(None, use_errno=True)
    for name in ("unshare", "setns", "mount", "prctl", "capset", "syscall"):
        getattr(libc, name)
    return libc


def enter_namespaces(libc: ctypes.CDLL) -> bool:
    """New user, mount, process, network and IPC namespaces, as nobody without a group.

    Of processes it is the next child that is in the new one. A child tries it first: where the
    kernel lets a process in but not name its user, it would be of no more use.
    """
    trial = os.fork()
    if trial == 0:
        os._exit(not _enter(libc))
    return os.waitpid(trial, 0)[1] == 0 and _enter(libc)


def _enter(libc: ctypes.CDLL) -> bool:
    uid, gid = os.getuid(), os.getgid()
    flags = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC
    libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # a change of user before gave /proc/self to root
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
    """For the next child; after `enter_namespaces`.

    Raises:
        OSError: the kernel has no room for one more.
    """
    if libc.unshare(CLONE_NEWPID) != 0:
        raise OSError(ctypes.get_errno(), "no new namespace for processes")


def own_process_namespace(libc: ctypes.CDLL) -> None:
    """For the next child, that of this process: only from there another new one can be made.

    Raises:
        OSError: it can't be had.
    """
    own = os.open("/proc/self/ns/pid", os.O_RDONLY)
    failed = libc.setns(own, CLONE_NEWPID) != 0
    os.close(own)
    if failed:
        raise OSError(ctypes.get_errno(), "no way back to the server's own processes")


def mount_read_only(libc: ctypes.CDLL) -> bool:
    """All files read-only, all devices but four unusable."""
    return (
        libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None) == 0
        and _attributes(libc, "/", AT_RECURSIVE, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV, 0) == 0
        and all(
            libc.mount(device.encode(), device.encode(), None, MS_BIND, None) == 0
            and _attributes(libc, device, 0, 0, MOUNT_ATTR_NODEV) == 0
            for device in DEVICES
        )
    )


def mount_home(libc: ctypes.CDLL, home: str) -> bool:
    """Mount and IPC namespaces of its own, in which `home` is a small tmpfs."""
    options = f"size={MAX_HOME_BYTES},mode=700".encode()
    return (
        libc.unshare(CLONE_NEWNS | CLONE_NEWIPC) == 0
        and libc.mount(b"tmpfs", home.encode(), b"tmpfs", MS_NOSUID | MS_NODEV, options) == 0
    )


def _attributes(libc: ctypes.CDLL, path: str, flags: int, add: int, remove: int) -> int:
    request = (ctypes.c_uint64 * 4)(add, remove, 0, 0)  # struct mount_attr
    return libc.syscall(
        SYS_MOUNT_SETATTR, AT_FDCWD, path.encode(), flags, request, ctypes.c_size_t(32)
    )


def limit(cpu_seconds: int, memory_bytes: int, threads: int | None) -> None:
    """Limits of CPU time, memory, file size, open files and, unless None, threads."""
    limits = [
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, MAX_FILE_BYTES),
        (resource.RLIMIT_NOFILE, MAX_OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ]
    if threads is not None:
        limits.append((resource.RLIMIT_NPROC, threads))
    for kind, value in limits:
        _, hard = resource.getrlimit(kind)
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (bound, bound))


def drop_privileges(libc: ctypes.CDLL) -> None:
    """No capabilities now, and none from any file executed later."""
    # struct __user_cap_header {version, pid} and two times {effective, permitted, inheritable}
    libc.capset((ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)())
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


class FileRules:
    """What programs may do with files outside of their home: made once, for `confine_files`.

    Attributes:
        places: the real paths of what they may read, as far as it exists.
        rights: all those that Landlock rules here; 0 where there is no Landlock.
        allowed: descriptor and rights of each place and device.
    """

    def __init__(self, libc: ctypes.CDLL, readable: Sequence[str]) -> None:
        self.places = tuple(os.path.realpath(path) for path in readable if os.path.exists(path))
        version = libc.syscall(SYS_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)
        reading = LANDLOCK_READ_FILE | LANDLOCK_READ_DIR
        rights = reading | LANDLOCK_EXECUTE | LANDLOCK_WRITE_FILE | LANDLOCK_REMOVE_AND_MAKE
        rights |= LANDLOCK_REFER if version >= 2 else 0
        rights |= LANDLOCK_TRUNCATE if version >= 3 else 0
        of_files = LANDLOCK_READ_FILE | LANDLOCK_WRITE_FILE | LANDLOCK_TRUNCATE
        self.rights = rights if version >= 1 else 0
        self.allowed = []
        devices = [device for device in DEVICES if os.path.exists(device)]
        for path, right in [*((p, reading) for p in self.places), *((d, rights) for d in devices)]:
            kept = rights if os.path.isdir(path) else of_files & rights
            self.allowed.append((os.open(path, os.O_PATH), right & kept))


def confine_files(libc: ctypes.CDLL, home: str, rules: FileRules) -> bool:
    """Landlock: files change beneath `home`, others are used by `rules`, none is executed.

    After `drop_privileges`. Closes the descriptors of `rules`.
    """
    own = (os.open(home, os.O_PATH), rules.rights & ~LANDLOCK_EXECUTE)
    ruleset = libc.syscall(
        SYS_LANDLOCK_CREATE, struct.pack("Q", rules.rights), ctypes.c_size_t(8), ctypes.c_uint32(0)
    )
    for place, allowed in (own, *rules.allowed):
        rule = struct.pack("=Qi", allowed, place)
        libc.syscall(SYS_LANDLOCK_ADD, ruleset, 1, rule, ctypes.c_uint32(0))
        os.close(place)
    if ruleset < 0:
        return False
    confined = libc.syscall(SYS_LANDLOCK_RESTRICT, ruleset, ctypes.c_uint32(0)) == 0
    os.close(ruleset)
    return confined


def system_call_filter() -> bytes | None:
    """No new process (a thread may be), no program, no signal, no way to other sockets.

    For `filter_system_calls`; None on a machine whose calls are not known.
    """
    known = SYSTEM_CALLS.get(os.uname().machine)
    return None if known is None else _filter(*known)


def filter_system_calls(libc: ctypes.CDLL, code: bytes | None) -> bool:
    """Seccomp, by `code` of `system_call_filter`. After `drop_privileges`."""
    if code is None:
        return False
    instructions = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(instructions))
    return libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0) == 0


def _filter(
    architecture: int, clone: int, allowed: tuple[tuple[int, int], ...], refused: tuple[int, ...]
) -> bytes:
    """The filter in classic BPF: {code, jump if true, jump if false, constant} an instruction."""
    refuse, unknown = SECCOMP_ERRNO | EPERM, SECCOMP_ERRNO | ENOSYS
    code = [
        (BPF_LOAD, 0, 0, AT_ARCHITECTURE),
        (BPF_IF_EQUAL, 1, 0, architecture),
        (BPF_RETURN, 0, 0, unknown),
        (BPF_LOAD, 0, 0, AT_NUMBER),
        (BPF_IF_AT_LEAST, 0, 1, X32_SYSCALLS),
        (BPF_RETURN, 0, 0, unknown),
        # The C library turns to clone, whose flags a filter can see, where clone3 is unknown.
        (BPF_IF_EQUAL, 0, 1, SYS_CLONE3),
        (BPF_RETURN, 0, 0, unknown),
    ]
    for number in refused:
        code += [(BPF_IF_EQUAL, 0, 1, number), (BPF_RETURN, 0, 0, refuse)]
    for number, argument in allowed:
        code += [
            (BPF_IF_EQUAL, 0, 4, number),
            (BPF_LOAD, 0, 0, AT_FIRST_ARGUMENT),
            (BPF_IF_EQUAL, 1, 0, argument),
            (BPF_RETURN, 0, 0, refuse),
            (BPF_RETURN, 0, 0, SECCOMP_ALLOW),
        ]
    code += [
        (BPF_IF_EQUAL, 0, 3, clone),
        (BPF_LOAD, 0, 0, AT_FIRST_ARGUMENT),
        (BPF_IF_BITS, 1, 0, CLONE_THREAD),
        (BPF_RETURN, 0, 0, refuse),
        (BPF_RETURN, 0, 0, SECCOMP_ALLOW),
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)
