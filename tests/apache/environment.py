"""A real Apache and a real daemon for the end-to-end tests: built, configured, started and stopped here.

Everything lives in one folder of its own and listens on loopback: nothing of the machine's own Apache is touched.
What is missing is an error and never a skip: a test that did not run must not look like one that passed.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from string import Template

from tests.ports import unused_port
from tests.processes import stop

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLE = REPOSITORY / "deploy" / "apache"
HERE = Path(__file__).resolve().parent

APACHE = Path("/usr/sbin/apache2")
APACHE_MODULES = Path("/usr/lib/apache2/modules")
CHROMIUM = Path("/usr/bin/chromium")
CHROMEDRIVER = Path("/usr/bin/chromedriver")

# Debian's package for each thing that the tests use.
NEEDED: dict[str, str] = {
    str(APACHE): "apache2",
    "/usr/bin/apxs": "apache2-dev",
    str(APACHE_MODULES / "libphp*.so"): "libapache2-mod-php",
    str(CHROMIUM): "chromium",
    str(CHROMEDRIVER): "chromium-driver",
    "/usr/bin/curl": "curl",
}

WORKER_COUNT = 4
# A daemon that finds no compile cache compiles for seconds, on a busy machine for tens of them.
DAEMON_START_SECONDS_MAX = 90.0
APACHE_START_SECONDS_MAX = 10.0

CONFIGURATION = Template("""\
ServerRoot $root
ServerName localhost
DefaultRuntimeDir $root/run
PidFile $root/run/apache.pid
ErrorLog $root/log/error.log
LogLevel warn handoff_test:info
LogFormat "%m %U %>s" counted
CustomLog $root/log/access.log counted
$identity

LoadModule mpm_prefork_module $modules/mod_mpm_prefork.so
LoadModule authz_core_module $modules/mod_authz_core.so
LoadModule authz_host_module $modules/mod_authz_host.so
LoadModule dir_module $modules/mod_dir.so
LoadModule mime_module $modules/mod_mime.so
LoadModule env_module $modules/mod_env.so
LoadModule headers_module $modules/mod_headers.so
LoadModule filter_module $modules/mod_filter.so
LoadModule deflate_module $modules/mod_deflate.so
LoadModule reqtimeout_module $modules/mod_reqtimeout.so
LoadModule php_module $php
LoadModule handoff_test_module $handoff

# Few and always as many: a worker that a stream held would be missed at once.
StartServers $workers
MinSpareServers $workers
MaxSpareServers $workers
ServerLimit $workers
MaxRequestWorkers $workers
# A browser keeps connections open that it may never use again, and each holds one of the few workers.
KeepAliveTimeout 1

TypesConfig /etc/mime.types
<FilesMatch "\\.php$$">
    SetHandler application/x-httpd-php
</FilesMatch>
php_admin_flag display_errors off
php_admin_flag log_errors on
# As an admin may have it: compression must stay out of a stream's way.
AddOutputFilterByType DEFLATE text/html text/event-stream application/problem+json
<Directory />
    Require all denied
</Directory>

Define STREAMING_DAEMON_LISTEN 127.0.0.1:$port
Define STREAMING_DAEMON_HTDOCS $root/htdocs
Define STREAMING_DAEMON_SOCKET $root/sockets/daemon.sock
Define STREAMING_DAEMON_SOCKET_FOLDER $root/sockets
Include $example/streaming-daemon.conf
""")


def require_packages() -> None:
    """Say which of Debian's packages are missing and how to get them."""
    missing = sorted(package for path, package in NEEDED.items() if not list(Path("/").glob(path.lstrip("/"))))
    if missing:
        line = f"apt-get install --yes --no-install-recommends {' '.join(missing)}"
        raise RuntimeError(f"These tests need Debian packages that are not here. Install them with:\n    {line}")


@dataclass(frozen=True)
class Apache:
    """A running Apache with the example site, and where to find what it wrote."""

    root: Path
    port: int

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def default_socket(self) -> Path:
        """The socket that the example site hands its connections to."""
        return self.root / "sockets" / "daemon.sock"

    @property
    def socket_folder(self) -> Path:
        """The one folder that sockets may lie in."""
        return self.root / "sockets"

    def requests_logged(self, path: str) -> list[str]:
        """Lines of the access log (`GET /stream.php 200`) for one path."""
        lines = (self.root / "log" / "access.log").read_text().splitlines()
        return [line for line in lines if line.split(" ")[1] == path]

    def error_log(self) -> str:
        return (self.root / "log" / "error.log").read_text()


def build_module(folder: Path) -> Path:
    """Compile the handoff module; warnings are errors, since nobody reads them in a test run."""
    source = shutil.copy(HERE / "mod_handoff_test.c", folder)
    flags = [f"-Wc,{flag}" for flag in ("-Wall", "-Wextra", "-Werror")]
    result = subprocess.run(
        ["/usr/bin/apxs", *flags, "-c", source], check=False, cwd=folder, capture_output=True, text=True
    )
    if result.returncode != 0:
        raise RuntimeError(f"apxs could not build the module:\n{result.stdout}{result.stderr}")
    return folder / ".libs" / "mod_handoff_test.so"


def prepare_site(root: Path) -> None:
    """Copy the example site and the tests' own scripts to where Apache's user may read them."""
    for name in ("run", "log", "sockets"):
        (root / name).mkdir()
    shutil.copytree(EXAMPLE / "htdocs", root / "htdocs")
    for script in (HERE / "htdocs").glob("*.php"):
        shutil.copy(script, root / "htdocs")
    for path in (root, *root.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def write_configuration(root: Path, module: Path, port: int) -> Path:
    # Started as root, Apache must be told whom to become; otherwise it stays who it is.
    identity = "User www-data\nGroup www-data" if os.geteuid() == 0 else ""
    path = root / "apache.conf"
    path.write_text(
        CONFIGURATION.substitute(
            root=root,
            identity=identity,
            modules=APACHE_MODULES,
            php=max(APACHE_MODULES.glob("libphp*.so")),
            handoff=module,
            workers=WORKER_COUNT,
            port=port,
            example=EXAMPLE,
        )
    )
    return path


@contextmanager
def running_apache(root: Path) -> Generator[Apache]:
    """Start Apache in the foreground in `root`, an empty folder that its user can reach, and stop it afterwards."""
    module = build_module(root)
    prepare_site(root)
    port = unused_port()
    configuration = write_configuration(root, module, port)
    command = [str(APACHE), "-d", str(root), "-f", str(configuration), "-DFOREGROUND"]
    output = root / "log" / "console.log"
    with output.open("wb") as console:
        # Apache ends by a signal to its whole process group, which must not be the one that runs the tests.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            wait_for_listener(
                socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", port), process, output, APACHE_START_SECONDS_MAX
            )
            yield Apache(root, port)
        finally:
            stop(process)


def daemon_command() -> list[str]:
    return [sys.executable, "-m", "daemon"]


@contextmanager
def running_daemon(socket_path: Path, *options: str, delay_ms: int = 10) -> Generator[subprocess.Popen[bytes]]:
    """Start the daemon on `socket_path`, wait until it accepts handoffs, and stop it afterwards."""
    output = socket_path.with_suffix(".log")
    # Apache's user must be able to connect, whoever runs the tests.
    command = [
        *daemon_command(),
        "--socket",
        str(socket_path),
        "--socket-mode",
        "0666",
        "--delay",
        str(delay_ms),
        *options,
    ]
    with output.open("wb") as console:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT
        )
        try:
            wait_for_listener(
                socket.AF_UNIX, socket.SOCK_SEQPACKET, str(socket_path), process, output, DAEMON_START_SECONDS_MAX
            )
            yield process
        finally:
            stop(process)


def wait_for_listener(
    family: socket.AddressFamily,
    kind: socket.SocketKind,
    address: str | tuple[str, int],
    process: subprocess.Popen[bytes],
    output: Path,
    seconds_max: float,
) -> None:
    """Return once something accepts at `address`; fail with the program's own words when it ends before that."""
    deadline = time.monotonic() + seconds_max
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with {process.returncode}:\n{output.read_text()}")
        with socket.socket(family, kind) as probe:
            if probe.connect_ex(address) == 0:
                return
        time.sleep(0.02)
    raise RuntimeError(f"{process.args!r} did not listen at {address} within {seconds_max} s:\n{output.read_text()}")
