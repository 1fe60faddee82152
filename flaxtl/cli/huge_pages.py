"""Memory in huge pages: networks on a CPU take a tenth less time (docs/performance.md).

XLA takes hundreds of megabytes from the system in every call, and Linux clears them page by page. With pages of 2 MB
instead of 4 kB that is seldom noticed. Where Linux gives huge pages only to programs that ask for them, glibc's malloc
can ask (glibc.malloc.hugetlb, glibc 2.35), but decides when a process starts.
"""

import os
import sys
from pathlib import Path

VARIABLE = "GLIBC_TUNABLES"

TUNABLES = "glibc.malloc.hugetlb=1"
"""Value of VARIABLE: malloc asks for huge pages."""

KERNEL_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
"""The choices of the kernel, the chosen one in brackets: 'always [madvise] never'."""


def restart_with_huge_pages() -> None:
    """Replace this process by one with the same number, command line and standard streams, and with huge pages.

    It does nothing if Linux or the C library does not give them on request, with FLAXTL_HUGE_PAGES=0, or if the
    environment sets GLIBC_TUNABLES, as it does after the restart.
    """
    if os.environ.get("FLAXTL_HUGE_PAGES") == "0" or VARIABLE in os.environ or not _can_ask():
        return
    try:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {VARIABLE: TUNABLES})
    except OSError:
        return  # they only save time


def _can_ask() -> bool:
    """Return whether Linux gives huge pages to programs that ask for them, and this process's malloc knows how."""
    try:
        return malloc_can_ask() and "[madvise]" in KERNEL_SETTING.read_text()
    except OSError:
        return False


def malloc_can_ask() -> bool:
    """Return whether the C library is glibc 2.35 or later."""
    try:
        library, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
    except (AttributeError, ValueError):  # Windows; another C library
        return False
    return library == "glibc" and tuple(int(part) for part in version.split(".")) >= (2, 35)
