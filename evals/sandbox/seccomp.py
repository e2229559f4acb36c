"""The filter of system calls: an allow-list of what Python and its numerical libraries need.

Every other call fails with EPERM, unknown ones on other architectures with ENOSYS. Among those that
fail are all that start processes, send signals or open sockets. The exception is `socketpair` for
streams, which asyncio needs: its ends are connected to each other, and data cannot be addressed to
another socket. Some calls are allowed with certain arguments only. Standard library only.

Numbers: the kernel's arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
"""

import os
import struct

# linux/seccomp.h, linux/bpf_common.h, linux/audit.h
ALLOW, ERRNO = 0x7FFF0000, 0x50000
LOAD, IF_EQUAL, IF_BITS, IF_AT_LEAST, AND, RETURN = 0x20, 0x15, 0x45, 0x35, 0x54, 0x06
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
EPERM, ENOSYS = 1, 38
X32_CALLS = 0x40000000
CLONE_THREAD = 0x10000
AF_UNIX, SOCK_STREAM, SOCK_TYPE_MASK = 1, 1, 0xF

# The columns of the tables below, with their audit numbers.
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALLOWED: dict[str, dict[str, tuple[int | None, int | None]]] = {
    "files": {
        "read": (0, 63),
        "write": (1, 64),
        "open": (2, None),
        "close": (3, 57),
        "stat": (4, None),
        "fstat": (5, 80),
        "lstat": (6, None),
        "lseek": (8, 62),
        "pread64": (17, 67),
        "pwrite64": (18, 68),
        "readv": (19, 65),
        "writev": (20, 66),
        "access": (21, None),
        "pipe": (22, None),
        "dup": (32, 23),
        "dup2": (33, None),
        "sendfile": (40, 71),
        "flock": (73, 32),
        "fsync": (74, 82),
        "fdatasync": (75, 83),
        "truncate": (76, 45),
        "ftruncate": (77, 46),
        "getdents": (78, None),
        "getcwd": (79, 17),
        "chdir": (80, 49),
        "fchdir": (81, 50),
        "rename": (82, None),
        "mkdir": (83, None),
        "rmdir": (84, None),
        "creat": (85, None),
        "link": (86, None),
        "unlink": (87, None),
        "symlink": (88, None),
        "readlink": (89, None),
        "chmod": (90, None),
        "fchmod": (91, 52),
        "chown": (92, None),
        "fchown": (93, 55),
        "lchown": (94, None),
        "umask": (95, 166),
        "utime": (132, None),
        "statfs": (137, 43),
        "fstatfs": (138, 44),
        "getxattr": (191, 8),
        "lgetxattr": (192, 9),
        "fgetxattr": (193, 10),
        "listxattr": (194, 11),
        "llistxattr": (195, 12),
        "flistxattr": (196, 13),
        "getdents64": (217, 61),
        "fadvise64": (221, 223),
        "utimes": (235, None),
        "openat": (257, 56),
        "mkdirat": (258, 34),
        "fchownat": (260, 54),
        "newfstatat": (262, 79),
        "unlinkat": (263, 35),
        "renameat": (264, 38),
        "linkat": (265, 37),
        "symlinkat": (266, 36),
        "readlinkat": (267, 78),
        "fchmodat": (268, 53),
        "faccessat": (269, 48),
        "utimensat": (280, 88),
        "fallocate": (285, 47),
        "dup3": (292, 24),
        "pipe2": (293, 59),
        "preadv": (295, 69),
        "pwritev": (296, 70),
        "renameat2": (316, 276),
        "copy_file_range": (326, 285),
        "preadv2": (327, 286),
        "pwritev2": (328, 287),
        "statx": (332, 291),
        "close_range": (436, 436),
        "faccessat2": (439, 439),
    },
    "memory": {
        "mmap": (9, 222),
        "mprotect": (10, 226),
        "munmap": (11, 215),
        "brk": (12, 214),
        "mremap": (25, 216),
        "msync": (26, 227),
        "mincore": (27, 232),
        "madvise": (28, 233),
        "membarrier": (324, 283),
    },
    "waiting": {
        "poll": (7, None),
        "select": (23, None),
        "pause": (34, None),
        "nanosleep": (35, 101),
        "epoll_wait": (232, None),
        "epoll_ctl": (233, 21),
        "pselect6": (270, 72),
        "ppoll": (271, 73),
        "epoll_pwait": (281, 22),
        "eventfd2": (290, 19),
        "epoll_create1": (291, 20),
        "recvfrom": (45, 207),
        "shutdown": (48, 210),
        "clock_nanosleep": (230, 115),
    },
    "threads": {
        "sched_yield": (24, 124),
        "gettid": (186, 178),
        "futex": (202, 98),
        "sched_getaffinity": (204, 123),
        "set_tid_address": (218, 96),
        "set_robust_list": (273, 99),
        "rseq": (334, 293),
        "sched_getparam": (143, 121),
        "sched_getscheduler": (145, 120),
        "sched_get_priority_max": (146, 125),
        "sched_get_priority_min": (147, 126),
        "arch_prctl": (158, None),
    },
    "the process itself": {
        "rt_sigaction": (13, 134),
        "rt_sigprocmask": (14, 135),
        "rt_sigreturn": (15, 139),
        "rt_sigpending": (127, 136),
        "rt_sigtimedwait": (128, 137),
        "rt_sigsuspend": (130, 133),
        "sigaltstack": (131, 132),
        "restart_syscall": (219, 128),
        "getitimer": (36, 102),
        "alarm": (37, None),
        "setitimer": (38, 103),
        "getpid": (39, 172),
        "exit": (60, 93),
        "exit_group": (231, 94),
        "wait4": (61, 260),
        "uname": (63, 160),
        "getrlimit": (97, 163),
        "setrlimit": (160, 164),
        "getrusage": (98, 165),
        "sysinfo": (99, 179),
        "times": (100, 153),
        "getuid": (102, 174),
        "getgid": (104, 176),
        "geteuid": (107, 175),
        "getegid": (108, 177),
        "getppid": (110, 173),
        "getpgrp": (111, None),
        "getgroups": (115, 158),
        "getresuid": (118, 148),
        "getresgid": (120, 150),
        "getpgid": (121, 155),
        "getsid": (124, 156),
        "getpriority": (140, 141),
        "gettimeofday": (96, 169),
        "clock_gettime": (228, 113),
        "clock_getres": (229, 114),
        "time": (201, None),
        "getcpu": (309, 168),
        "getrandom": (318, 278),
    },
}
# Allowed with these values of one argument only: the numbers, the argument, the values.
ALLOWED_WITH: dict[str, tuple[tuple[int, int], int, tuple[int, ...]]] = {
    "prlimit64": ((302, 261), 0, (0,)),  # the own process
    # no owner for signals (F_SETOWN, F_SETSIG): F_DUPFD, F_GETFD to F_SETLKW, F_OFD locks,
    # F_DUPFD_CLOEXEC, F_GETPIPE_SZ, F_ADD_SEALS
    "fcntl": ((72, 25), 1, (*range(8), 36, 37, 38, 1030, 1032, 1033, 1034)),
    # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
    "ioctl": ((16, 29), 1, (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),
    "prctl": ((157, 167), 0, (15, 16)),  # the name of a thread
    "sendto": ((44, 206), 4, (0,)),  # no address
}
SOCKETPAIR, RECVMSG, CLONE, CLONE3 = (53, 199), (47, 212), (56, 220), 435

Instruction = tuple[int, int, int, int]


def build(*, receives: bool = False) -> bytes | None:
    """Return the filter in classic BPF, or None if this machine's system calls are not known.

    An instruction is {code, instructions to skip if true, to skip if false, constant}.

    Args:
        receives: also allow to receive descriptors over a socket, which the tests' process has.
    """
    machine = os.uname().machine
    if machine not in ARCHITECTURES:
        return None
    column = list(ARCHITECTURES).index(machine)
    refuse, unknown = (RETURN, 0, 0, ERRNO | EPERM), (RETURN, 0, 0, ERRNO | ENOSYS)
    allow = (RETURN, 0, 0, ALLOW)
    code: list[Instruction] = [
        (LOAD, 0, 0, ARCHITECTURE),
        (IF_EQUAL, 1, 0, ARCHITECTURES[machine]),
        unknown,
        (LOAD, 0, 0, NUMBER),
        (IF_AT_LEAST, 0, 1, X32_CALLS),
        unknown,
        # If clone3 is unknown, the C library uses clone, whose flags a filter can read.
        (IF_EQUAL, 0, 1, CLONE3),
        unknown,
    ]
    for calls in ALLOWED.values():
        for numbers in calls.values():
            if (number := numbers[column]) is not None:
                code += [(IF_EQUAL, 0, 1, number), allow]
    if receives:
        code += [(IF_EQUAL, 0, 1, RECVMSG[column]), allow]
    for pair, argument, values in ALLOWED_WITH.values():
        code += _only_for(pair[column], [*_is_one_of(argument, values, allow), refuse])
    stream_pair = [
        *_unless(AF_UNIX, _argument(0), refuse),
        (LOAD, 0, 0, _argument(1)),
        (AND, 0, 0, SOCK_TYPE_MASK),
        (IF_EQUAL, 1, 0, SOCK_STREAM),
        refuse,
        allow,
    ]
    thread: list[Instruction] = [
        (LOAD, 0, 0, _argument(0)),
        (IF_BITS, 1, 0, CLONE_THREAD),
        refuse,
        allow,
    ]
    code += _only_for(SOCKETPAIR[column], stream_pair) + _only_for(CLONE[column], thread)
    code.append(refuse)
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _argument(index: int) -> int:
    """Return the offset of the lower half of a call's argument; both machines are little-endian."""
    return ARGUMENTS + 8 * index


def _only_for(number: int, then: list[Instruction]) -> list[Instruction]:
    """Return instructions for one call, of which the last returns."""
    return [(IF_EQUAL, 0, len(then), number), *then]


def _unless(value: int, offset: int, refuse: Instruction) -> list[Instruction]:
    return [(LOAD, 0, 0, offset), (IF_EQUAL, 1, 0, value), refuse]


def _is_one_of(argument: int, values: tuple[int, ...], allow: Instruction) -> list[Instruction]:
    """Return instructions that allow a call with one of the values as argument.

    The kernel reads 32 bits of it, except of an address, which has to be 0 in both halves.
    """
    code: list[Instruction] = [(LOAD, 0, 0, _argument(argument))]
    if values == (0,):  # the upper half too
        return [
            *code,
            (IF_EQUAL, 0, 3, 0),
            (LOAD, 0, 0, _argument(argument) + 4),
            (IF_EQUAL, 0, 1, 0),
            allow,
        ]
    for value in values:
        code += [(IF_EQUAL, 0, 1, value), allow]
    return code
