"""A W&B server on 127.0.0.1 with a chosen fault, open during a ``with`` block."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# A bucket as the server would return it; wandb needs these keys to accept the run.
_PROJECT = {"id": "P", "name": "ppo_lab", "entity": {"id": "E", "name": "me"}}


def _bucket_of(rows: list[str]) -> dict[str, Any]:
    """Return what the server knows of a run with ``rows``."""
    lines = {f"{name}LineCount": 0 for name in ("log", "events")} | {"historyLineCount": len(rows)}
    tails = {"historyTail": json.dumps(rows[-1:]), "eventsTail": "[]"}
    more = {"summaryMetrics": "{}", "config": "{}", "tags": [], "wandbConfig": '{"t": 1}'}
    return {"id": "B", "name": "a", **lines, **tails, **more}


class StubServer(ThreadingHTTPServer):
    """Answers per ``fault``: ok, hang or a status, each also as FAULT_after_init, later."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, fault: str, history: dict[str, list[str]], bodies: list[bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.fault, self.history = fault, history
        self.is_closing = threading.Event()
        self.bodies = bodies

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that closed the connection."""


class _Handler(BaseHTTPRequestHandler):
    server: StubServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.bodies.append(body)
        query = body.decode(errors="replace")
        fault = self.server.fault
        if fault.endswith("_after_init"):
            is_init = any(word in query for word in ("UpsertBucket", "RunResumeStatus"))
            fault = "ok" if is_init else fault.removesuffix("_after_init")
        if fault == "hang":
            self.server.is_closing.wait(60)
        elif fault == "ok":
            self._keep_rows(query)
            self._reply(200, self._answer(query))
        else:
            self._reply(int(fault), {"error": "stub"})

    do_GET = do_PUT = do_POST  # noqa: N815 - http.server's names

    def _keep_rows(self, query: str) -> None:
        """Keep the rows that a run streams: ``/files/ENTITY/PROJECT/RUN/file_stream``."""
        if not self.path.endswith("/file_stream"):
            return
        sent = json.loads(query).get("files", {}).get("wandb-history.jsonl")
        if sent is not None:
            rows = self.server.history.setdefault(self.path.split("/")[-2], [])
            rows[sent["offset"] :] = sent["content"]

    def _answer(self, query: str) -> dict[str, Any]:
        if "UpsertBucket" in query:
            name = json.loads(query)["variables"]["name"]
            bucket = {"id": "B", "name": name, "displayName": name, "project": _PROJECT}
            return {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}
        if "RunResumeStatus" in query:
            rows = self.server.history.get(json.loads(query)["variables"]["name"])
            return {"data": {"model": rows and {"bucket": _bucket_of(rows)}}}
        if "query Viewer" in query or "GetDefaultEntity" in query:
            viewer = {"id": "U", "entity": "me", "username": "me", "flags": "{}"}
            return {"data": {"viewer": viewer | {"teams": {"edges": []}}}}
        if "UpsertView2" in query:
            return {"data": {"upsertView": {"view": {"id": "V", "name": "nw-abc-v"}}}}
        if "CreateRunFiles" in query:  # wandb's process dies of an empty answer here
            return {"data": {"createRunFiles": {"runID": "B", "uploadHeaders": [], "files": []}}}
        return {"data": {}}

    def _reply(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the test's output clean."""


@contextmanager
def serve(
    fault: str,
    history: dict[str, list[str]] | None = None,
    bodies: list[bytes] | None = None,
) -> Iterator[str]:
    """Yield the base URL of a server with ``fault``; ``refused`` is a port nobody listens on.

    A run's rows are added to ``history``, and the server knows the runs of which it holds rows;
    all that it is sent to ``bodies``.
    """
    if fault == "refused":
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
            yield f"http://127.0.0.1:{unused.getsockname()[1]}"
        return
    server = StubServer(fault, {} if history is None else history, [] if bodies is None else bodies)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.url
    finally:
        server.is_closing.set()
        server.shutdown()
        server.server_close()
