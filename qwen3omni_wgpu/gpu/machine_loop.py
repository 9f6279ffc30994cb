"""Many short C calls in one go, without Python between them, on Linux with x86-64.

A token is recorded by some 900 calls that take 0.2 us each, and to make one from Python takes as long again
(docs/LOG.md). A compiled extension would want a compiler or a wheel for every platform; the loop is 56 bytes of machine
code. Elsewhere, and where the system lets no program write code, gpu/replay.py makes the calls one by one.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import platform
import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

# System V calling convention: void loop(const u64 (*row)[5], const u64 (*end)[5], void *first).
X86_64 = bytes.fromhex(
    "f30f1efa"  #   endbr64
    "53"  #         push rbx
    "4154"  #       push r12
    "4155"  #       push r13            the stack is a multiple of 16 again
    "4889fb"  #     mov  rbx, rdi       row
    "4989f4"  #     mov  r12, rsi       end
    "4989d5"  #     mov  r13, rdx       first
    "4c39e3"  # 12: cmp  rbx, r12
    "731b"  #       jae  32
    "4c89ef"  #     mov  rdi, r13
    "488b7308"  #   mov  rsi, [rbx + 8]
    "488b5310"  #   mov  rdx, [rbx + 16]
    "488b4b18"  #   mov  rcx, [rbx + 24]
    "4c8b4320"  #   mov  r8, [rbx + 32]
    "ff13"  #       call [rbx]
    "4883c328"  #   add  rbx, 40
    "ebe0"  #       jmp  12
    "415d"  #   32: pop  r13
    "415c"  #       pop  r12
    "5b"  #         pop  rbx
    "c3"  #         ret
)
ARGUMENTS = 4  # of a call, behind the first one, which is the same for all; integers and pointers


class Packed(NamedTuple):
    """Calls as rows of an address and its arguments."""

    rows: np.ndarray  # uint64 [calls, 1 + ARGUMENTS]
    start: ctypes.c_void_p
    end: ctypes.c_void_p


def available() -> bool:
    """Whether calls are made by the loop here."""
    return _loop() is not None


def packed(calls: Iterable[tuple[int, ...]]) -> Packed | None:
    """Calls for `run`, each an address and up to four arguments behind the first; None where there is no loop."""
    if not available():
        return None
    rows = [(*call, *[0] * (1 + ARGUMENTS - len(call))) for call in calls]
    words = np.array(rows, np.uint64).reshape(len(rows), 1 + ARGUMENTS)
    start = words.ctypes.data
    return Packed(words, ctypes.c_void_p(start), ctypes.c_void_p(start + words.nbytes))


def run(calls: Packed, first: ctypes.c_void_p) -> None:
    """Every call in its order, with `first` as its first argument. The interpreter's lock is kept meanwhile."""
    loop = _loop()
    assert loop is not None
    loop[0](calls.start, calls.end, first)


@functools.cache
def _loop() -> tuple[Any, mmap.mmap] | None:
    """The loop as a function, and the page it lies in; the page can be written or run, never both."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return None
    page = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    page.write(X86_64)
    at = ctypes.addressof(ctypes.c_char.from_buffer(page))
    runnable = mmap.PROT_READ | mmap.PROT_EXEC
    if ctypes.CDLL(None).mprotect(ctypes.c_void_p(at), ctypes.c_size_t(mmap.PAGESIZE), runnable):
        return None  # forbidden, by SELinux for one
    return ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)(at), page
