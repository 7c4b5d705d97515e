"""A server of files that drops, truncates, corrupts and refuses."""

import base64
import collections
import contextlib
import hashlib
import http.server
import json
import re
import threading
import time
import urllib.parse

import google_crc32c

PREFIX = "checkpoints/mt3"


class Bucket:
    """Google's storage as far as download.py knows it, over some objects in memory.

    Attributes:
        objects: name -> content.
        faults: name -> what happens at the next requests for it, one after the other; afterwards it is served whole.
            'list' is the name of the listing.
        requests: (name, Range header or None), in order.
        hashes: of md5Hash and crc32c, those that the listing tells.
        per_page: items of a listing.
        tokens: name -> the token that a request for it must have.
    """

    def __init__(self, objects):
        self.objects = dict(objects)
        self.faults = collections.defaultdict(list)
        self.requests = []
        self.hashes = ("md5Hash", "crc32c")
        self.per_page = 1000
        self.tokens = {}
        self.etag = '"1"'
        bucket = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                bucket.answer(self)

            def log_message(self, *arguments):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def listing(self, query):
        prefix = query.get("prefix", [""])[0]
        names = sorted(name for name in self.objects if name.startswith(prefix))
        first = int(query.get("pageToken", ["0"])[0])
        items = [
            {
                "name": name,
                "size": str(len(self.objects[name])),
                "mediaLink": f"{self.url}/media/{urllib.parse.quote(name, safe='')}",
                "md5Hash": base64.b64encode(hashlib.md5(self.objects[name]).digest()).decode(),
                "crc32c": base64.b64encode(google_crc32c.Checksum(self.objects[name]).digest()).decode(),
            }
            for name in names[first : first + self.per_page]
        ]
        for item in items:
            for kind in {"md5Hash", "crc32c"} - set(self.hashes):
                del item[kind]
        page = {"items": items} if items else {}
        if first + self.per_page < len(names):
            page["nextPageToken"] = str(first + self.per_page)
        return json.dumps(page).encode()

    def answer(self, handler):
        url = urllib.parse.urlsplit(handler.path)
        listing = url.path == "/storage/v1/b/mt3/o"
        name = "list" if listing else urllib.parse.unquote(url.path.removeprefix("/media/"))
        span = handler.headers.get("Range")
        self.requests.append((name, span))
        fault = self.faults[name].pop(0) if self.faults[name] else ""
        if not listing and name not in self.objects:
            fault = 404
        if name in self.tokens and urllib.parse.parse_qs(url.query).get("token") != [self.tokens[name]]:
            fault = 403
        content = self.listing(urllib.parse.parse_qs(url.query)) if listing else self.objects.get(name, b"")
        if isinstance(fault, int):
            handler.send_response(fault)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        if fault == "hang up":
            handler.close_connection = True
            return
        if fault == "redirect":
            handler.send_response(302)
            handler.send_header("Location", f"{self.url.replace('127.0.0.1', '0.0.0.0')}/media/other")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        if fault == "text":
            content = b"<html>log in first</html>"
        if fault == "drip":
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(content)))
            handler.end_headers()
            with contextlib.suppress(OSError):
                for byte in content:
                    handler.wfile.write(bytes([byte]))
                    time.sleep(0.02)
            return
        if fault == "endless":
            handler.send_response(200)
            handler.send_header("Transfer-Encoding", "chunked")
            handler.end_headers()
            with contextlib.suppress(OSError):
                while True:
                    handler.wfile.write(b"10000\r\n" + bytes(2**16) + b"\r\n")
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", span)[1]) if span else 0
        whole = fault == "ignore range" or (handler.headers.get("If-Range") not in (None, self.etag))
        if span and not whole:
            if start >= len(content):
                handler.send_response(416)
                handler.send_header("Content-Length", "0")
                handler.end_headers()
                return
            shift = 1 if fault == "wrong part" else 0
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start + shift}-{len(content) - 1}/{len(content)}")
        else:
            handler.send_response(200)
            start = 0
        body = content[start:]
        if fault == "corrupt":
            body = bytes([body[0] ^ 1]) + body[1:]
        if fault == "truncate":
            # and says that this is all
            body = body[: len(body) // 2]
        handler.send_header("ETag", self.etag)
        if fault != "no length":
            handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if fault in ("drop", "no length"):
            handler.close_connection = True
        handler.wfile.write(body[: len(body) // 2] if fault == "drop" else body)
