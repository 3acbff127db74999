"""A real PostgreSQL server for tests: the system's program, in a folder and a process of its own.

pytest-postgresql cannot do this as root, who runs the tests in CI: PostgreSQL refuses to run as root, and it starts the
server as whoever runs the tests. pgserver adds an account to the machine instead.
"""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg2

from tests.support.ports import free_ports
from tests.support.programs import system_program
from tests.support.waiting import until

USER = "mlflow"
OPTIONS = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off"}


@contextmanager
def postgresql() -> Iterator[str]:
    """Yields the address of an empty database, for SQLAlchemy."""
    programs = [Path(path) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    initdb = system_program("initdb", *programs)
    postgres = Path(initdb).resolve().with_name("postgres")
    account = _account()
    folder = Path(tempfile.mkdtemp(prefix="clipstream-", dir="/tmp"))  # where the account may go too
    if account:
        shutil.chown(folder, account)
    command = [initdb, f"--pgdata={folder}", f"--username={USER}", "--auth=trust", "--no-sync"]
    subprocess.run(command, user=account, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    (port,) = free_ports(1)
    command = [str(postgres), "-D", str(folder), "-p", port]
    command += [f"--{name}={value}" for name, value in OPTIONS.items()]
    address = f"{USER}@127.0.0.1:{port}/postgres"
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, user=account, cwd=folder, stdout=log, stderr=log) as process,
    ):
        try:
            until(lambda: process.poll() is not None or _answers(f"postgresql://{address}"), 60)
            yield f"postgresql+psycopg2://{address}"
        finally:
            process.send_signal(signal.SIGINT)  # at SIGTERM it would wait for its clients
    shutil.rmtree(folder)


def _account() -> str | None:
    """Returns whom the server runs as, which refuses to be root; None: whoever runs the tests."""
    if os.getuid():
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def _answers(uri: str) -> bool:
    with suppress(psycopg2.OperationalError):
        psycopg2.connect(uri).close()
        return True
    return False
