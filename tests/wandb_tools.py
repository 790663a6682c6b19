"""W&B without W&B: a reader of the file that an offline run leaves, and a server on loopback for an online one."""

from __future__ import annotations

import json
import re
import struct
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

BLOCK, FILE_HEADER, RECORD_HEADER = 32 * 1024, 7, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def read_records(path: Path) -> Iterator[Any]:
    """The `wandb_internal_pb2.Record`s of a `.wandb` file, which is a LevelDB log.

    Format: https://github.com/google/leveldb/blob/main/doc/log_format.md, after 7 bytes of W&B's own that count as part
    of the first block.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data = path.read_bytes()
    assert data[:4] == b":W&B"
    position, payload = FILE_HEADER, b""
    while position + RECORD_HEADER <= len(data):
        left_in_block = BLOCK - position % BLOCK
        if left_in_block < RECORD_HEADER:
            position += left_in_block
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + RECORD_HEADER])
        position += RECORD_HEADER
        if position + length > len(data):  # still being written
            return
        assert kind in (FULL, FIRST, MIDDLE, LAST) and bool(payload) == (kind in (MIDDLE, LAST))
        payload += data[position : position + length]
        position += length
        if kind in (FULL, LAST):
            yield Record.FromString(payload)
            payload = b""


def _items(items: Any) -> dict[str, Any]:
    """Key and JSON value pairs as a dictionary; the keys may be paths into it."""
    found: dict[str, Any] = {}
    for item in items:
        *outer, name = item.nested_key or [item.key]
        node = found
        for key in outer:
            node = node.setdefault(key, {})
        node[name] = json.loads(item.value_json)
    return found


def read_run(directory: Path, seconds: float = 10) -> dict[str, Any]:
    """What the only W&B run under `directory` holds: run, config, history, summary, artifacts, exit_code, file.

    `finish()` returns before W&B's own process has written the last record of an offline run, or even made its file,
    so this waits for the exit code; it stays None if it does not come.
    """
    deadline = time.monotonic() + seconds
    while not (files := list(directory.rglob("*.wandb"))) and time.monotonic() < deadline:
        time.sleep(0.02)
    (file,) = files
    while (found := _read_now(file))["exit_code"] is None and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def _read_now(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = {
        "file": file,
        "config": {},
        "history": [],
        "summary": {},
        "artifacts": [],
        "exit_code": None,
    }
    for record in read_records(file):
        match record.WhichOneof("record_type"):
            case "run":
                found["run"] = record.run
                found["config"] |= _items(record.run.config.update)
            case "config":
                found["config"] |= _items(record.config.update)
            case "history":
                found["history"].append(_items(record.history.item))
            case "summary":
                found["summary"] |= _items(record.summary.update)
            case "artifact":
                found["artifacts"].append(record.artifact)
            case "exit":
                found["exit_code"] = record.exit.exit_code
    return found


class MockServer:
    """The part of a W&B server that one online run needs, on loopback. Use as a context manager.

    Attributes:
        url: For `WANDB_BASE_URL`.
        runs: Variables of the last UpsertBucket, by run name.
        history: Rows of all runs, in order.
        summary: By run name, the last one sent.
        exit_codes: By run name.
        uploads: Names of the files that were put.
    """

    def __init__(self, refuse: bool = False) -> None:
        self.refuse = refuse  # answers, but takes no run, as with a key that was revoked
        self.runs: dict[str, dict[str, Any]] = {}
        self.history: list[dict[str, Any]] = []
        self.summary: dict[str, dict[str, Any]] = {}
        self.exit_codes: dict[str, int] = {}
        self.uploads: list[str] = []
        mock = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def reply(self, obj: Any, code: int = 200) -> None:
                body = json.dumps(obj).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def body(self) -> bytes:
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))

            def do_GET(self) -> None:
                self.reply({}, 404)

            def do_PUT(self) -> None:
                self.body()
                mock.uploads.append(self.path)
                self.reply({})

            def do_POST(self) -> None:
                body = self.body()
                if self.path.endswith("/file_stream"):
                    mock.stream(self.path.split("/")[-2], json.loads(body))
                    self.reply({})
                elif not self.path.endswith("/graphql"):  # the client's own telemetry
                    self.reply({}, 404)
                elif mock.refuse:
                    self.reply({"errors": [{"message": "permission denied"}]}, 403)
                else:
                    request = json.loads(body)
                    self.reply({"data": mock.answer(request["query"], request.get("variables") or {})})

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass  # the client leaves connections without a goodbye

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The data of a GraphQL answer."""
        if "upsertBucket" in query:
            name = variables["name"]
            self.runs[name] = self.runs.get(name, {}) | {k: v for k, v in variables.items() if v is not None}
            project = {"name": variables["project"], "entity": {"name": "me"}}
            bucket = {"id": name, "name": name, "displayName": name, "project": project, "historyLineCount": 0}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if "createRunFiles" in query:
            files = [{"name": n, "uploadUrl": f"{self.url}/put/{n}"} for n in variables["files"]]
            return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}
        if "createArtifact(" in query:  # the table of the ROC curve: known already, nothing to send
            artifact = {"id": "a", "state": "COMMITTED", "artifactSequence": {"id": "s", "latestArtifact": None}}
            return {"createArtifact": {"artifact": artifact}}
        if "query ArtifactType(" in query:
            return {"project": None}
        if re.search(r"\bviewer\b", query):
            return {"viewer": {"id": "me", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
        return {}

    def stream(self, run: str, request: dict[str, Any]) -> None:
        """Takes in a file-stream request."""
        for name, chunk in request.get("files", {}).items():
            rows = [json.loads(row) for row in chunk["content"]] if name.endswith((".json", ".jsonl")) else []
            if name == "wandb-history.jsonl":
                self.history += rows
            elif name == "wandb-summary.json":
                self.summary[run] = rows[-1]
        if request.get("complete"):
            self.exit_codes[run] = request["exitcode"]

    def __enter__(self) -> MockServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
