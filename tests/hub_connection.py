"""Requests and answers of the Hub of hub_server.py, as bytes on a connection."""

import json
from http.server import BaseHTTPRequestHandler
from typing import Any


class Connection(BaseHTTPRequestHandler):
    """Reads bodies and answers in JSON; `mute`: closes where it would answer."""

    protocol_version = "HTTP/1.1"
    mute = False

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def cut(self) -> None:
        self.close_connection = True
        self.connection.close()

    def answer(self, status: int, facts: Any = None, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        if self.mute:
            return self.cut()
        if facts is not None:
            body = json.dumps(facts).encode()
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(name, value)
        if status == 404 and facts and facts.get("code"):
            self.send_header("X-Error-Code", facts["code"])
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
