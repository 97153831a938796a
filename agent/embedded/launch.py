"""Runs between fork and the server: changes user, asks to die with the parent, then becomes the server.

A program of its own (`python -I -S launch.py PARENT SIGNAL UID GID command ...`) because doing this after a fork inside
a threaded Python process can deadlock. Imports the standard library only. UID -1 keeps the user.
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1
EXIT_CANNOT_START = 127


def main() -> None:
    """Replace this process by the command, or exit with 127 and the reason on stderr."""
    parent, death_signal, uid, gid = (int(value) for value in sys.argv[1:5])
    command = sys.argv[5:]
    try:
        if uid != -1:
            change_user(uid=uid, gid=gid)
        die_with_parent(parent=parent, death_signal=death_signal)
        os.execv(command[0], command)  # noqa: S606 - no shell is wanted
    except OSError as error:
        sys.stderr.write(f"cannot start {command[0]}: {error}\n")
        sys.exit(EXIT_CANNOT_START)


def change_user(*, uid: int, gid: int) -> None:
    """Give up every group and become `uid` for good."""
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)


def die_with_parent(*, parent: int, death_signal: int) -> None:
    """Have the kernel send `death_signal` when the parent dies; leave at once if it is dead already.

    Must come after the change of user, which clears the request (prctl(2)).
    """
    if not sys.platform.startswith("linux"):
        return
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        sys.exit(EXIT_CANNOT_START)


if __name__ == "__main__":
    main()
