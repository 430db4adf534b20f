"""Private MariaDB and Redis servers: loopback only, in a directory of their own, owned by whoever starts them.

They touch no system service, no system configuration and no system account. The same classes serve the lab
(which has them supervised), tests and benchmarks (which start and end them directly).
"""

from __future__ import annotations

import hashlib
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pymysql
from redis import Redis
from redis.exceptions import AuthenticationError, RedisError

LOOPBACK = "127.0.0.1"
_SOCKET_PATH_LIMIT = 107
_POLL_SECONDS = 0.05
_ANY_PORT = range(10_000, 21_000)
#: Held while this process lives; the kernel lets go of them however it ends.
_claims: list[socket.socket] = []


class StoreError(Exception):
    """A private server could not be set up, started or ended; the message says which and where its log is."""


def free_port(first: int | None = None) -> int:
    """A port on loopback that nothing listens on, and that this process alone is given until it ends.

    :param first: where to begin to look, at most 500 further; without it, anywhere from 10000 to 20999. Both are below
        the ports that the kernel gives to outgoing connections: one of those may take a port before its server does.
    """
    candidates = range(first, first + 501) if first is not None else random.sample(_ANY_PORT, 500)
    for port in candidates:
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                claim.bind(f"\0sluice-port-{port}")
                probe.bind((LOOPBACK, port))
            except OSError:
                claim.close()
                continue
        _claims.append(claim)
        return port
    raise StoreError(f"no free port on {LOOPBACK} from {min(candidates)}; end what listens there")


def run_directory(directory: Path) -> Path:
    """A short private directory for the unix sockets of ``directory``: their paths may have 107 characters only."""
    digest = hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:12]
    name = f"sluice-{os.getuid()}-{digest}"
    base = Path(tempfile.gettempdir())
    if len(str(base / name)) > _SOCKET_PATH_LIMIT - 20:
        base = Path("/tmp")  # noqa: S108  the name is ours, the mode is checked below
    path = base / name
    path.mkdir(mode=0o700, exist_ok=True)
    state = path.lstat()
    if state.st_uid != os.getuid() or state.st_mode & 0o077 or path.is_symlink():
        raise StoreError(f"{path} belongs to someone else or is open to others; remove it and try again")
    return path


def wait_for(what: str, answers: Callable[[], bool], seconds: float, alive: Callable[[], bool], log: Path) -> None:
    """Poll ``answers`` until it is true; StoreError when the process died or ``seconds`` have passed."""
    deadline = time.monotonic() + seconds
    while not answers():
        if not alive():
            raise StoreError(f"{what} ended while it started; its log is {log}{_last_line(log)}")
        if time.monotonic() > deadline:
            raise StoreError(f"{what} did not answer within {seconds:g} s; its log is {log}{_last_line(log)}")
        time.sleep(_POLL_SECONDS)


def program(name: str) -> str:
    """The path of a server program; also looked for where Debian keeps those that are for root."""
    path = shutil.which(name) or shutil.which(name, path="/usr/local/sbin:/usr/sbin:/sbin")
    if path is None:
        raise StoreError(f"{name} is not installed; install it (Debian: mariadb-server, redis-server)")
    return path


class PrivateServer:
    """A server process that is started, stopped, killed and restarted by the object that describes it."""

    name: str

    def __init__(self, directory: Path, port: int) -> None:
        self.directory = directory
        self.port = port
        self.log = directory / f"{self.name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """The argument list that runs the server in the foreground; no secret is in it."""
        raise NotImplementedError

    def initialise(self) -> None:
        """Make the directory and what the server needs in it; does nothing when that is there already."""
        raise NotImplementedError

    def answers(self) -> bool:
        """Whether the server accepts our credentials right now."""
        raise NotImplementedError

    @property
    def pid(self) -> int | None:
        """The process id while the server runs as our child, else None."""
        return self._process.pid if self._process is not None and self.running else None

    @property
    def running(self) -> bool:
        """Whether the process that this object started is alive."""
        return self._process is not None and self._process.poll() is None

    def start(self, seconds: float = 60) -> None:
        """Initialise if needed, start, and wait until the server answers."""
        if self.running:
            return
        self.initialise()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        wait_for(f"{self.name} on port {self.port}", self.answers, seconds, lambda: self.running, self.log)

    def stop(self, seconds: float = 60) -> None:
        """End the server in order and wait for it."""
        self._end(signal.SIGTERM, seconds)

    def kill(self) -> None:
        """SIGKILL: nothing is flushed that was not on disk."""
        self._end(signal.SIGKILL, 10)

    def restart(self) -> None:
        """Stop in order and start again on the same data."""
        self.stop()
        self.start()

    def _end(self, number: signal.Signals, seconds: float) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(number)
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise StoreError(
                f"{self.name} (process {self._process.pid}) did not end within {seconds:g} s; its log is {self.log}"
            ) from error
        self._process = None


class PrivateMariaDB(PrivateServer):
    """A MariaDB server that writes through to disk at every commit and keeps no binary log."""

    name = "mariadb"

    def __init__(self, directory: Path, port: int, buffer_pool_mb: int = 256) -> None:
        super().__init__(directory, port)
        self.buffer_pool_mb = buffer_pool_mb
        self.data = directory / "data"
        self._defaults = directory / "my.cnf"
        self._root_password = directory / "root.password"

    @property
    def socket(self) -> Path:
        """The unix socket of the server."""
        return run_directory(self.directory) / "mariadb.sock"

    @property
    def root_password(self) -> str:
        """The random password of ``root``, known once the server was initialised."""
        return self._root_password.read_text(encoding="ascii").strip()

    def command(self) -> list[str]:
        return [program("mariadbd"), f"--defaults-file={self._defaults}"]

    def initialise(self) -> None:
        run_directory(self.directory)
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh = not (self.data / "mysql").is_dir()
        init_file = self.directory / "init.sql"
        if fresh:
            password = secrets.token_hex(20)
            write_private(self._root_password, password + "\n")
            write_private(
                init_file,
                "DELETE FROM mysql.global_priv WHERE NOT (User = 'root' AND Host = 'localhost')"
                " AND User NOT IN ('mariadb.sys');\nFLUSH PRIVILEGES;\n"
                f"ALTER USER 'root'@'localhost' IDENTIFIED VIA mysql_native_password USING PASSWORD('{password}');\n",
            )
        self._write_defaults(init_file if init_file.exists() else None)
        if fresh:
            self._install()

    def _write_defaults(self, init_file: Path | None) -> None:
        lines = [
            "[mariadbd]",
            f"datadir={self.data}",
            f"tmpdir={self.directory}",
            f"socket={self.socket}",
            f"pid-file={self.directory / 'mariadb.pid'}",
            f"bind-address={LOOPBACK}",
            f"port={self.port}",
            "skip-name-resolve=ON",
            "skip-log-bin",
            "performance-schema=OFF",
            "character-set-server=utf8mb4",
            "collation-server=utf8mb4_general_ci",
            "max-connections=200",
            "innodb-flush-log-at-trx-commit=1",
            f"innodb-buffer-pool-size={self.buffer_pool_mb}M",
            "innodb-log-file-size=96M",
            "key-buffer-size=1M",
        ]
        if os.geteuid() == 0:
            lines.append("user=root")
        if init_file is not None:
            lines.append(f"init-file={init_file}")
        write_private(self._defaults, "\n".join(lines) + "\n")

    def _install(self) -> None:
        command = [
            program("mariadb-install-db"),
            "--no-defaults",
            f"--datadir={self.data}",
            "--auth-root-authentication-method=normal",
            "--skip-name-resolve",
            "--skip-test-db",
            "--force",  # works without a resolver: our accounts are named by address
        ]
        if os.geteuid() == 0:
            command.append("--user=root")
        # Two of them at once must not meet in the machine's own temporary folder.
        environment = {**os.environ, "TMPDIR": str(self.directory)}
        with self.log.open("ab") as log:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, check=False
            )
        if done.returncode != 0 or not (self.data / "mysql").is_dir():
            shutil.rmtree(self.data, ignore_errors=True)
            raise StoreError(f"mariadb-install-db ended with {done.returncode}; its log is {self.log}")

    def answers(self) -> bool:
        try:
            self.connect_as_root().close()
        except pymysql.err.OperationalError:
            return False
        # The password is set by now; the file that set it is not needed a second time.
        if (self.directory / "init.sql").exists():
            (self.directory / "init.sql").unlink()
            self._write_defaults(None)
        return True

    def _end(self, number: signal.Signals, seconds: float) -> None:
        super()._end(number, seconds)
        remove_run_directory(self.directory)

    def connect_as_root(self, database: str | None = None) -> pymysql.connections.Connection[pymysql.cursors.Cursor]:
        """A connection of ``root`` over the unix socket, autocommit on. The caller closes it."""
        return pymysql.connect(
            unix_socket=str(self.socket), user="root", password=self.root_password, database=database, autocommit=True,
            ssl_disabled=True,
        )  # fmt: skip

    def root_url(self, database: str = "") -> str:
        """An SQLAlchemy URL for ``root`` over the unix socket."""
        return f"mysql+pymysql://root:{self.root_password}@localhost/{database}?unix_socket={quote(str(self.socket))}"

    def url(self, user: str, password: str, database: str = "") -> str:
        """An SQLAlchemy URL over TCP for an account that the caller has made."""
        return f"mysql+pymysql://{quote(user, safe='')}:{quote(password, safe='')}@{LOOPBACK}:{self.port}/{database}"


class PrivateRedis(PrivateServer):
    """A Redis server with a password, an ACL file (``ACL SAVE`` works), no eviction, and AOF synced every second."""

    name = "redis"

    def __init__(self, directory: Path, port: int, password: str, appendonly: bool = True) -> None:
        super().__init__(directory, port)
        self.password = password
        self.appendonly = appendonly
        self._config = directory / "redis.conf"
        self._users = directory / "users.acl"

    def command(self) -> list[str]:
        return [program("redis-server"), str(self._config)]

    def initialise(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not self._users.exists():
            digest = hashlib.sha256(self.password.encode()).hexdigest()
            write_private(self._users, f"user default on #{digest} ~* &* +@all\n")
        if not self._config.exists():
            lines = [
                f"bind {LOOPBACK}",
                "protected-mode yes",
                f"port {self.port}",
                f"dir {_quoted(self.directory)}",
                f"aclfile {_quoted(self._users)}",
                "daemonize no",
                'save ""',
                f"appendonly {'yes' if self.appendonly else 'no'}",
                "appendfsync everysec",
                "maxmemory-policy noeviction",
            ]
            write_private(self._config, "\n".join(lines) + "\n")

    def answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except AuthenticationError:
            raise StoreError(
                f"redis on port {self.port} refuses our password; another server has the port, or {self._users} changed"
            ) from None
        except RedisError:
            return False

    def client(self) -> Redis:
        """A client of the user ``default`` on database 0. The caller closes it."""
        return Redis.from_url(self.url())

    def url(self, database: int = 0) -> str:
        """The URL of the user ``default``."""
        return f"redis://default:{quote(self.password, safe='')}@{LOOPBACK}:{self.port}/{database}"


def remove_run_directory(directory: Path) -> None:
    """Remove the socket directory that belongs to ``directory``."""
    shutil.rmtree(run_directory(directory), ignore_errors=True)


def write_private(path: Path, content: str) -> None:
    """Write a file of mode 0600 in one step, so that nobody reads half of it."""
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(content)
    temporary.replace(path)


def _quoted(path: Path) -> str:
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return f"; it ends: {lines[-1]}" if lines else ""
