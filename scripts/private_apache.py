"""A private Apache with PHP, a handoff module and the example site: built, configured, started and stopped here.

Everything is in one folder and listens on loopback: nothing of the machine's own Apache is touched. The end-to-end
tests and `make demo-apache` use it. What is missing is an error that says how to get it.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Literal

from scripts.processes import running, wait_for_listener

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from contextlib import AbstractContextManager

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "deploy" / "apache"
STAND_IN = ROOT / "tests" / "apache" / "mod_handoff_test.c"

APACHE = Path("/usr/sbin/apache2")
APACHE_MODULES = Path("/usr/lib/apache2/modules")
REAL_MODULE = APACHE_MODULES / "mod_socket_handoff.so"
FPM_PATTERN = "php-fpm[0-9].[0-9]"

# Debian's package for each thing that is used here.
NEEDED = {
    str(APACHE): "apache2",
    "/usr/bin/apxs": "apache2-dev",
    str(APACHE_MODULES / "libphp*.so"): "libapache2-mod-php",
}

WORKER_COUNT = 4
START_SECONDS_MAX = 10.0
# A daemon whose machine code is not built yet builds it first, on a busy machine for tens of seconds.
DAEMON_START_SECONDS_MAX = 90.0

PhpKind = Literal["mod_php", "php-fpm"]
"""How Apache runs PHP: inside its own processes (prefork), or in PHP-FPM's (event, with HTTP/2)."""

MODULES = (
    *("authz_core", "authz_host", "dir", "mime", "env", "headers", "filter", "deflate", "reqtimeout", "setenvif"),
    "socache_shmcb",
    "ssl",
)

CONFIGURATION = Template("""\
ServerRoot $root
ServerName localhost
DefaultRuntimeDir $root/run
PidFile $root/run/apache.pid
ErrorLog $root/log/error.log
LogLevel warn
LogFormat "%m %U %>s" counted
CustomLog $root/log/access.log counted
$identity

$modules
$php

TypesConfig /etc/mime.types
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

PREFORK = Template("""\
LoadModule mpm_prefork_module $modules/mod_mpm_prefork.so
LoadModule php_module $php
# Few and always as many: a worker that a stream held would be missed at once.
StartServers $workers
MinSpareServers $workers
MaxSpareServers $workers
ServerLimit $workers
MaxRequestWorkers $workers
# A browser keeps connections open that it may never use again, and each holds one of the few workers.
KeepAliveTimeout 1
<FilesMatch "\\.php$$">
    SetHandler application/x-httpd-php
</FilesMatch>
php_admin_flag display_errors off
php_admin_flag log_errors on
""")

EVENT = Template("""\
LoadModule mpm_event_module $modules/mod_mpm_event.so
LoadModule http2_module $modules/mod_http2.so
LoadModule proxy_module $modules/mod_proxy.so
LoadModule proxy_fcgi_module $modules/mod_proxy_fcgi.so
StartServers 1
ThreadsPerChild 16
MaxRequestWorkers 16
<FilesMatch "\\.php$$">
    SetHandler "proxy:unix:$root/run/php-fpm.sock|fcgi://localhost"
</FilesMatch>
""")

FPM = Template("""\
[global]
error_log = $root/log/php-fpm.log
daemonize = no

[www]
$identity
listen = $root/run/php-fpm.sock
listen.mode = 0666
pm = static
pm.max_children = $workers
php_admin_flag[display_errors] = off
php_admin_flag[log_errors] = on
""")


class ApacheError(Exception):
    """What Apache needs is missing, or cannot be built; the message says what to do."""


@dataclass(frozen=True)
class Apache:
    """A running Apache with the example site, and where to find what it wrote."""

    root: Path
    port: int

    @property
    def base_url(self) -> str:
        """The example site's address, without a slash at the end."""
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
        """What Apache's error log says."""
        return (self.root / "log" / "error.log").read_text()


def require_packages(needed: dict[str, str]) -> None:
    """Look for files, by pattern, and name the Debian packages of those that are missing.

    Raises:
        ApacheError: something is missing.
    """
    missing = sorted(package for path, package in needed.items() if not list(Path("/").glob(path.lstrip("/"))))
    if missing:
        line = f"apt-get install --yes --no-install-recommends {' '.join(missing)}"
        raise ApacheError(f"Debian packages are missing. Install them with:\n    {line}")


def build_stand_in(folder: Path) -> Path:
    """Compile the tests' handoff module in `folder`; warnings are errors, since nobody reads them in a test run.

    Raises:
        ApacheError: it does not compile.
    """
    source = shutil.copy(STAND_IN, folder)
    flags = [f"-Wc,{flag}" for flag in ("-Wall", "-Wextra", "-Werror")]
    command = ["/usr/bin/apxs", *flags, "-c", source]
    result = subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True)
    if result.returncode != 0:
        raise ApacheError(f"apxs could not build the module:\n{result.stdout}{result.stderr}")
    return folder / ".libs" / f"{STAND_IN.stem}.so"


def prepare_site(root: Path, scripts: Sequence[Path] = ()) -> None:
    """Copy the example site, and `scripts` beside it, to where Apache's user may read them."""
    for name in ("run", "log", "sockets"):
        (root / name).mkdir()
    shutil.copytree(EXAMPLE / "htdocs", root / "htdocs")
    for script in scripts:
        shutil.copy(script, root / "htdocs")
    for path in (root, *root.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def write_configuration(root: Path, module: Path, port: int, php: PhpKind, extra: str) -> Path:
    """Write Apache's configuration, with `extra` behind the example site, where $root stands for the folder."""
    # Started as root, Apache must be told whom to become; otherwise it stays who it is.
    identity = "User www-data\nGroup www-data" if os.geteuid() == 0 else ""
    name = "socket_handoff_module" if module == REAL_MODULE else "handoff_test_module"
    lines = [f"LoadModule {one}_module {APACHE_MODULES}/mod_{one}.so" for one in MODULES]
    lines.append(f"LoadModule {name} {module}")
    names: dict[str, object] = {"root": root, "modules": APACHE_MODULES, "workers": WORKER_COUNT}
    if php == "mod_php":
        php_lines = PREFORK.substitute(names, php=max(APACHE_MODULES.glob("libphp*.so")))
    else:
        php_lines = EVENT.substitute(names)
    names |= {"identity": identity, "modules": "\n".join(lines), "php": php_lines, "port": port, "example": EXAMPLE}
    path = root / "apache.conf"
    path.write_text(CONFIGURATION.substitute(names) + Template(extra).substitute(names))
    return path


def running_fpm(root: Path) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """PHP-FPM with a pool whose socket is in `root`."""
    identity = "user = www-data\ngroup = www-data" if os.geteuid() == 0 else ""
    path = root / "php-fpm.conf"
    path.write_text(FPM.substitute(root=root, identity=identity, workers=WORKER_COUNT))
    program = max(Path("/usr/sbin").glob(FPM_PATTERN))
    return running([str(program), "--nodaemonize", "--fpm-config", str(path)], root / "log" / "php-fpm-console.log")


@contextmanager
def running_apache(
    root: Path, module: Path, port: int, *, php: PhpKind = "mod_php", extra: str = ""
) -> Generator[Apache]:
    """Start Apache in the foreground in `root`, where the site is prepared, and stop it afterwards."""
    configuration = write_configuration(root, module, port, php, extra)
    command = [str(APACHE), "-d", str(root), "-f", str(configuration), "-DFOREGROUND"]
    output = root / "log" / "console.log"
    with running_fpm(root) if php == "php-fpm" else nullcontext() as fpm:
        if fpm is not None:
            address = str(root / "run" / "php-fpm.sock")
            console = root / "log" / "php-fpm-console.log"
            wait_for_listener(socket.AF_UNIX, socket.SOCK_STREAM, address, fpm, console, START_SECONDS_MAX)
        with running(command, output) as process:
            address_of_site = ("127.0.0.1", port)
            wait_for_listener(socket.AF_INET, socket.SOCK_STREAM, address_of_site, process, output, START_SECONDS_MAX)
            yield Apache(root, port)


@contextmanager
def running_daemon(socket_path: Path, *options: str, delay_ms: int = 10) -> Generator[subprocess.Popen[bytes]]:
    """Start the daemon on `socket_path`, wait until it accepts handoffs, and stop it afterwards."""
    output = socket_path.with_suffix(".log")
    # Apache's user must be able to connect, whoever started this.
    command = [sys.executable, "-m", "daemon", "--socket", str(socket_path), "--socket-mode", "0666"]
    command += ["--delay", str(delay_ms), *options]
    with running(command, output, folder=ROOT) as process:
        address = str(socket_path)
        wait_for_listener(socket.AF_UNIX, socket.SOCK_SEQPACKET, address, process, output, DAEMON_START_SECONDS_MAX)
        yield process
