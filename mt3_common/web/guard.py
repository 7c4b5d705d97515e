"""Admission to the server: of its own page in a browser on this machine, or of whoever has the token.

A page of another site can make a browser send requests here (cross-site request forgery), and by a name that it makes
point to this machine it can even read the answers (DNS rebinding). The Host header shows the second, Origin and
Sec-Fetch-Site show the first; each alone is not enough.
"""

import hmac
import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "localhost", "::1")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-embedder-policy": "require-corp",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}


class Guard:
    """An ASGI application in front of another that refuses what does not come from the server's own page.

    Args:
        app: the application behind it.
        names: names that the Host header may have; () for any address that is written in digits.
        token: that requests other than for the page's files must carry; None for no token.
        public: paths that need no token.
    """

    def __init__(self, app: ASGIApp, names: Iterable[str] = LOOPBACK, token: str | None = None, public=()):
        self.app = app
        self.names = frozenset(name.lower() for name in names)
        self.token = token
        self.public = frozenset(public)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, with the headers of security on its answer, or refuse it."""
        if scope["type"] != "http":
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        status, reason = self.refusal(scope)
        if not status:
            await self.app(scope, receive, with_headers)
            return
        # the connection is closed: a body that was refused is not read
        response = PlainTextResponse(reason, status, {"connection": "close"})
        await response(scope, receive, with_headers)

    def refusal(self, scope: Scope) -> tuple[int, str]:
        """Return status and sentence for a request that is refused, (0, '') for one that is not."""
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self.is_own_name(hosts[0]):
            return 400, "this server does not go by that name: open it under the address that it printed"
        site = headers.get("sec-fetch-site")
        if scope["method"] not in ("GET", "HEAD"):
            origins = headers.getlist("origin")
            if len(origins) != 1 or origins[0] not in (f"http://{hosts[0]}", f"https://{hosts[0]}"):
                return 403, "only this server's own page may ask for this"
            if site != "same-origin":
                return 403, "only this server's own page may ask for this"
        elif scope["path"] not in self.public and site not in (None, "none", "same-origin"):
            return 403, "only this server's own page may ask for this"
        if self.token is not None and scope["path"] not in self.public:
            given = headers.get("authorization", "")
            if not hmac.compare_digest(given.encode(), f"Bearer {self.token}".encode()):
                return 401, "the token is missing or wrong: open the whole address that mt3 serve printed"
        return 0, ""

    def is_own_name(self, host: str) -> bool:
        """Return whether a Host header names this server."""
        try:
            parts = urlsplit(f"//{host}")
            name, _ = parts.hostname, parts.port
        except ValueError:
            return False
        if not name or parts.netloc != host or parts.username is not None:
            return False
        if self.names:
            return name in self.names
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name == "localhost"
        return True
