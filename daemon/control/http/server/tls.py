"""TLS certificates: loaded and validated, and replaced while the daemon listens. Main thread."""

from __future__ import annotations

import ssl
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.control.process.exit_codes import EXIT_CONFIGURATION, StartError

if TYPE_CHECKING:
    from config.http import Http


class RenewableContext(ssl.SSLContext):
    """The context that listeners hold: each handshake uses the certificate that is in force at that time.

    Loading another certificate into a context in use would keep an old certificate whose key is of another type.
    """

    current: ssl.SSLContext

    @classmethod
    def of(cls, context: ssl.SSLContext | None) -> RenewableContext | None:
        """Start with this context; None without TLS."""
        if context is None:
            return None
        made = cls(ssl.PROTOCOL_TLS_SERVER)
        made.current = context
        return made

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """Called when a handshake begins."""
        return self.current.wrap_bio(incoming, outgoing, server_side, server_hostname, session)


def load_certificates(settings: Http) -> ssl.SSLContext | None:
    """A context with the certificate and its key; None without TLS. Raises StartError when they cannot be used.

    Both files must be set or none; a passphrase is never prompted for.
    """
    if bool(settings.tls_certificate_file) != bool(settings.tls_key_file):
        raise _unusable("http.tls_certificate_file and http.tls_key_file belong together: set both, or none")
    if not settings.tls_certificate_file:
        return None
    for name in ("tls_certificate_file", "tls_key_file"):
        path = Path(getattr(settings, name))
        try:
            # Reading a pipe would block, and with it all streams at a reload.
            text = path.read_bytes() if stat.S_ISREG(path.stat().st_mode) else None
        except OSError as error:
            raise _unusable(f'http.{name} = "{path}" cannot be read: {error.strerror}') from error
        if text is None or b"-----BEGIN " not in text:
            raise _unusable(f'http.{name} = "{path}" is not a PEM file')
        if name == "tls_key_file" and b"ENCRYPTED" in text:
            raise _unusable(f'http.{name} = "{path}" has a passphrase, which cannot be entered: remove it')
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(settings.tls_certificate_file, settings.tls_key_file, password="")
    except (OSError, ssl.SSLError) as error:
        raise _unusable(
            f'http.tls_certificate_file = "{settings.tls_certificate_file}" and http.tls_key_file = '
            f'"{settings.tls_key_file}" do not match, or one of them is damaged: {error}'
        ) from error
    return context


def _unusable(message: str) -> StartError:
    return StartError(message, EXIT_CONFIGURATION)
