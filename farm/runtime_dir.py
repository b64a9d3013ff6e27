"""The runtime directory: made with the right modes, held by one farm for life, taken over from a dead one.

    DIR/                    0700, or 0750 with the service group
    DIR/control/            0700   lock, control.sock
    DIR/service/            0700, or 2750 with the service group: sockets in it belong to the group
    DIR/quarantine/         0700   inputs that killed workers, made by the router with the first; stays until removed

The lock is a flock on DIR/control/lock: the kernel drops it with the process, however that ended, so there is no stale
lock to judge. The file's content only tells people who holds it.
"""

from __future__ import annotations

import fcntl
import grp
import os
import stat

import msgspec

from farm.errors import ConfigError
from shm import paths
from shm.errors import FrameRefused
from shm.seqpacket import check_path

ATTEMPTS = 8
"""A farm that is just ending may remove the directories that we are just making; each attempt needs another one."""


EPOCH_MAX = 10**15 - 1
"""Epochs are milliseconds since the host's start; the lane's path, which has one in it, is the longest."""


class Holder(msgspec.Struct, frozen=True):
    """Who holds a runtime directory, as its lock says."""

    pid: int = 0
    serves: str = "?"


class DirectoryHeld(ConfigError):
    """A living farm has this directory."""

    def __init__(self, path: str, holder: Holder) -> None:
        super().__init__(
            f"a farm (pid {holder.pid}, serving {holder.serves}) already runs in {path}: "
            f"stop it with `farm stop --runtime-dir {path}`, or choose another --runtime-dir",
            reason="runtime_dir_held",
        )
        self.path = path
        self.holder = holder

    def __reduce__(self) -> tuple[type[DirectoryHeld], tuple[str, Holder]]:
        return DirectoryHeld, (self.path, self.holder)


class RuntimeDir:
    """A directory that this process holds until `release` or its death."""

    def __init__(self, path: str, lock_fd: int, made: bool) -> None:
        self.path = path
        self._lock_fd = lock_fd
        self._made = made

    def release(self, *, remove: bool = False) -> None:
        """Remove sockets, lock and the directories that are empty then; `remove`: also one that was there before. A
        quarantine with something in it stays, and so does the directory around it."""
        service = os.path.join(self.path, paths.SERVICE_DIR)
        control = os.path.join(self.path, paths.CONTROL_DIR)
        _unlink_sockets(service)
        _unlink_sockets(control)
        _rmdir(service)
        _rmdir(paths.quarantine_path(self.path))
        # Unlinked while it is still held: who waits for it sees another file at the path, or none, and tries again.
        _unlink(paths.lock_path(self.path))
        _rmdir(control)
        if self._made or remove:
            _rmdir(self.path)
        os.close(self._lock_fd)


def choose(named: str | None) -> str:
    """The directory for a new farm: the one that was named, else the first usual one that can be had.

    Raises:
        ConfigError: none can.
    """
    if named:
        return os.path.abspath(named)
    candidates = paths.runtime_dir_candidates()
    if len(candidates) == 1:
        return candidates[0]
    for candidate in candidates:
        place = candidate if os.path.isdir(candidate) else os.path.dirname(candidate)
        if os.access(place, os.W_OK | os.X_OK):
            return candidate
    raise ConfigError(f"no runtime directory can be made; tried {', '.join(candidates)}; name one with --runtime-dir")


def claim(path: str, *, serves: str, group: str | None = None) -> RuntimeDir:
    """Make the directory, or take it over from a farm that is dead, and hold it.

    Raises:
        DirectoryHeld: a living farm has it.
        ConfigError: it cannot be made, is somebody else's or a link, or its name is too long for a socket.
    """
    try:
        check_path(paths.lane_path(path, EPOCH_MAX))
    except FrameRefused as error:
        raise ConfigError(str(error)) from error
    gid = _group_id(group) if group else None
    try:
        for _ in range(ATTEMPTS):
            try:
                made = _make(path, gid)
                lock_fd = _lock(path)
            except FileNotFoundError:
                continue
            if lock_fd is not None:
                break
        else:
            raise ConfigError(f"runtime directory {path}: other farms start and stop there all the time; name another")
    except OSError as error:
        raise ConfigError(f"runtime directory {path}: {error.strerror}; name another with --runtime-dir") from error
    held = RuntimeDir(path, lock_fd, made)
    try:
        os.ftruncate(lock_fd, 0)
        os.pwrite(lock_fd, msgspec.json.encode(Holder(os.getpid(), serves)), 0)
        _private(os.path.join(path, paths.SERVICE_DIR), gid)
        # What a dead farm left. The router's sockets are its own to remove; a dead router's lanes are found here too.
        _unlink_sockets(os.path.join(path, paths.SERVICE_DIR))
        _unlink_sockets(os.path.join(path, paths.CONTROL_DIR))
    except OSError as error:
        held.release()
        raise ConfigError(f"runtime directory {path}: {error.strerror}; name another with --runtime-dir") from error
    return held


def holder_of(path: str) -> Holder:
    """Who says to hold a directory; pid 0 when it does not say."""
    try:
        with open(paths.lock_path(path), "rb") as lock:
            return msgspec.json.decode(lock.read(4096), type=Holder)
    except (OSError, msgspec.MsgspecError):
        return Holder()


def _make(path: str, gid: int | None) -> bool:
    """The directory and its control folder; True when the directory was not there before."""
    parent = os.path.dirname(path)
    os.makedirs(parent, exist_ok=True)
    above = os.stat(parent)
    if above.st_mode & stat.S_IWOTH and not above.st_mode & stat.S_ISVTX:
        raise ConfigError(
            f"runtime directory {path}: anybody may replace it, since {parent} is writable for all and not sticky"
        )
    try:
        there = set() if os.path.islink(path) else set(os.listdir(path))
    except OSError:
        there = set()  # what is wrong with it is said below
    if not there <= OURS:
        raise ConfigError(
            f"runtime directory {path} has other things in it, and would be closed to everyone else: "
            "name an empty one, or one that does not exist yet"
        )
    made = _private(path, gid, setgid=False)
    _private(os.path.join(path, paths.CONTROL_DIR), None)
    return made


OURS = frozenset({paths.SERVICE_DIR, paths.CONTROL_DIR, paths.QUARANTINE_DIR})
"""What a farm keeps in its directory."""


def _private(path: str, gid: int | None, setgid: bool = True) -> bool:
    """Make or check one directory: ours, no link, and with exactly the mode it should have."""
    try:
        os.mkdir(path, 0o700)
        made = True
    except FileExistsError:
        made = False
    found = os.lstat(path)
    if stat.S_ISLNK(found.st_mode):
        raise ConfigError(f"runtime directory {path} is a symbolic link: name the directory itself")
    if not stat.S_ISDIR(found.st_mode):
        raise ConfigError(f"runtime directory {path} is no directory: remove it or name another")
    if found.st_uid != os.geteuid():
        raise ConfigError(
            f"runtime directory {path} belongs to uid {found.st_uid}, this farm runs as {os.geteuid()}: "
            "name another with --runtime-dir"
        )
    # By descriptor: between the look above and the change nobody can put a link in its place.
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if gid is not None:
            os.fchown(fd, -1, gid)
        os.fchmod(fd, 0o700 if gid is None else 0o2750 if setgid else 0o750)
    finally:
        os.close(fd)
    return made


def _lock(path: str) -> int | None:
    """The lock's descriptor, held; None when the file went away meanwhile: try again."""
    lock = paths.lock_path(path)
    fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DirectoryHeld(path, holder_of(path)) from None
        if os.path.samestat(os.fstat(fd), os.lstat(lock)):
            return fd
    except FileNotFoundError:
        pass
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def _group_id(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise ConfigError(f"[farm] service_group = {group!r}: this host has no such group") from None


def _unlink_sockets(path: str) -> None:
    try:
        names = os.listdir(path)
    except OSError:
        return
    for name in names:
        if name.endswith(".sock"):
            _unlink(os.path.join(path, name))


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass


def _rmdir(path: str) -> None:
    try:
        os.rmdir(path)
    except OSError:
        pass
