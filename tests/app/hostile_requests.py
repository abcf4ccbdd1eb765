"""The table of hostile requests: what an attacker of tenant ``acme`` sends, and the only answer that is right.

``{mine}`` is a finished job of the attacker; ``{job} {dataset} {key}`` are those of the tenant ``rival``; ``{cursor}``
is a cursor that the service gave to the rival. Every refusal is a problem that tells nothing of the inside.
"""

from __future__ import annotations

import base64
import json
import struct
import zlib
from dataclasses import dataclass, field
from typing import Any

JSON = {"Content-Type": "application/json"}
NOTHING = "job_" + "0" * 32
NO_STATISTICS = f"/v1/datasets/ds_{'0' * 32}/statistics"
LONG = "9" * 400


@dataclass(frozen=True)
class Hostile:
    """``status`` is the answer's; ``body`` bytes are sent as they are."""

    what: str
    method: str
    path: str
    status: int
    headers: dict[str, str | bytes] = field(default_factory=dict)
    body: bytes = b""


def job(**changes: Any) -> bytes:
    body = {"model": {"id": "acme/m"}, "calibration": {"dataset": "acme/rows"}, "scheme": "W4A6"}
    return json.dumps({**body, **changes}).encode()


def form(
    content: bytes, *, filename: str = "rows.jsonl", disposition: str | None = None, end: str = "--x--\r\n"
) -> bytes:
    how = disposition or f'form-data; name="file"; filename="{filename}"'
    return f"--x\r\nContent-Disposition: {how}\r\n\r\n".encode() + content + f"\r\n{end}".encode()


def row(**changes: Any) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": "q"}], **changes}).encode() + b"\n"


def with_image(content: bytes, kind: str = "image/png") -> bytes:
    uri = f"data:{kind};base64,{base64.b64encode(content).decode()}"
    parts = [{"type": "image", "image": uri}, {"type": "text", "text": "q"}]
    return json.dumps({"messages": [{"role": "user", "content": parts}]}).encode() + b"\n"


def png(width: int, height: int, data: bytes = b"") -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def _paths() -> list[Hostile]:
    names = [
        "../../../../etc/passwd",
        "..%2f..%2f..%2fetc%2fpasswd",
        "%2e%2e/%2e%2e/secret",
        "....//....//etc/passwd",
        "..%5c..%5cwindows%5cwin.ini",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "file:///etc/passwd",
        "%00",
        "a%00.json",
        "config.json%00.png",
        "con",
        "nul.txt",
        "~root/.ssh/id_rsa",
        "$HOME",
        "`id`",
        "%24(id)",
        "';DROP%20TABLE%20jobs;--",
        "%ff%fe",
        "%c0%ae%c0%ae/",
        "%ed%a0%80",
        "a" * 5000,
        "%F0%9F%92%A9",
        "%0d%0aSet-Cookie:x=y",
        "..",
        ".",
    ]
    cases = [
        Hostile(f"artifact named {name[:40]}", "GET", f"/v1/jobs/{{mine}}/artifacts/{name}", 404) for name in names
    ]
    cases += [
        Hostile(f"hub file named {name[:40]}", "GET", f"/hub/qe/{{mine}}/resolve/main/{name}", 404)
        for name in names[:10]
    ]
    ids = [
        "0",
        "job_",
        "job_" + "g" * 32,
        "JOB_" + "0" * 32,
        NOTHING + "0",
        NOTHING[:-1],
        "job_" + "%EF%BC%90" * 32,
        "%00",
        "%0a",
        NOTHING + "%0a",
        NOTHING + "%20",
        "'%20OR%20'1'='1",
        "1;SELECT%20pg_sleep(9)",
        "%",
        "%zz",
        "*",
        "null",
        "[]",
        "-1",
        "a" * 8000,
    ]
    cases += [Hostile(f"job id {each[:40]}", "GET", f"/v1/jobs/{each}", 404) for each in ids]
    cases += [
        Hostile("two slashes", "GET", "//v1//jobs", 404),
        Hostile("a slash at the end", "GET", "/v1/jobs/", 404),
        Hostile("dots above the root", "GET", "/../../v1/secret", 404),
        Hostile("upper case", "GET", "/V1/JOBS", 404),
        Hostile("environment of the process", "GET", "/.env", 404),
        Hostile("repository of the code", "GET", "/.git/config", 404),
        Hostile("method that is none", "BREW", "/v1/jobs", 405),
        Hostile("method of a proxy", "TRACE", "/v1/jobs", 405),
        Hostile("method of another resource", "PATCH", "/v1/jobs/{mine}", 405),
        Hostile("delete of what cannot be deleted", "DELETE", "/v1/jobs/{mine}/events", 405),
    ]
    return cases


def _foreign() -> list[Hostile]:
    reads = ["", "/events", "/layers", "/attempts", "/artifacts", "/artifacts/config.json", "/archive", "/report"]
    cases = [
        Hostile(f"another tenant's job: {what or 'read'}", "GET", f"/v1/jobs/{{job}}{what}", 404) for what in reads
    ]
    cases += [
        Hostile(f"another tenant's job: {what}", "POST", f"/v1/jobs/{{job}}/{what}", 404)
        for what in ("cancel", "retry")
    ]
    cases += [
        Hostile("another tenant's event stream", "GET", "/v1/jobs/{job}/events", 404, {"Accept": "text/event-stream"}),
        Hostile("another tenant's dataset", "GET", "/v1/datasets/{dataset}", 404),
        Hostile("another tenant's dataset removed", "DELETE", "/v1/datasets/{dataset}", 404),
        Hostile("another tenant's key revoked", "DELETE", "/v1/keys/{key}", 404),
        Hostile("another tenant's cursor", "GET", "/v1/jobs?cursor={cursor}", 200),
        Hostile("another tenant's job on the hub", "GET", "/hub/api/models/qe/{job}", 404),
        Hostile("another tenant's file on the hub", "GET", "/hub/qe/{job}/resolve/main/config.json", 404),
        Hostile("another tenant's files on the hub", "GET", "/hub/api/models/qe/{job}/tree/main", 404),
        Hostile(
            "a key of another tenant",
            "POST",
            "/v1/keys",
            403,
            JSON,
            b'{"name":"k","scopes":["jobs:read"],"tenant":"rival"}',
        ),
    ]
    return cases


def _cursors() -> list[Hostile]:
    raw = [
        "",
        "x",
        "====",
        "%00",
        "null",
        "AAAA",
        "A" * 400,
        "A" * 401,
        base64.urlsafe_b64encode(b"\0" * 16).decode().rstrip("="),
        base64.urlsafe_b64encode(b"\0" * 16 + b'["2026-01-01T00:00:00+00:00","job_","x"]').decode().rstrip("="),
        "{cursor}A",
        "A{cursor}",
        "-_-_",
        "%F0%9F%92%A9",
        "../..",
    ]
    return [
        Hostile(f"cursor {each[:30]}", "GET", f"/v1/jobs?cursor={each}", 422 if len(each) == 401 else 400)
        for each in raw
    ] + [
        Hostile("cursor of other filters", "GET", "/v1/jobs?status=failed&cursor={cursor}", 400),
        Hostile("cursor of another listing", "GET", "/v1/datasets?cursor={cursor}", 400),
        Hostile("two cursors", "GET", "/v1/jobs?cursor=x&cursor=y", 400),
    ]


def _queries() -> list[Hostile]:
    bad = [
        "limit=0",
        "limit=-1",
        "limit=101",
        f"limit={LONG}",
        "limit=1e3",
        "limit=NaN",
        "limit=0x10",
        "limit=%31%00",
        "limit=",
        "limit=1.5",
        "limit=%D9%A1%D9%A2x",
        "status=done",
        "status=queued%00",
        "status=" + "queued&status=" * 6 + "queued",
        "label=%00",
        "label=" + "a" * 300,
        "label=a&" * 40,
        "model=%0a",
        "model=" + "m" * 300,
        "created_after=yesterday",
        "created_after=0",
        "created_after=3.3737422751431936e-33",
        "created_after=2026-01-01",
        "created_after=2026-01-01T00:00:00",
        "created_after=99999-01-01T00:00:00Z",
        "created_before=-1",
        f"created_before={LONG}",
        "unknown=1",
        "limit[]=1",
        "__proto__=x",
        "alias=%00",
    ]
    cases = [Hostile(f"jobs?{each[:40]}", "GET", f"/v1/jobs?{each}", 422) for each in bad]
    cases += [
        Hostile(f"events?{each[:30]}", "GET", f"/v1/jobs/{{mine}}/events?{each}", 422)
        for each in ("after=-1", "after=9223372036854775808", "limit=1001", f"after={LONG}", "after=1;2")
    ]
    cases += [
        Hostile(f"layers?{each[:30]}", "GET", f"/v1/jobs/{{mine}}/layers?{each}", 422)
        for each in ("after=-2", "after=1000001", "limit=0", "limit=501")
    ]
    cases += [
        Hostile("report?format=pdf", "GET", "/v1/jobs/{mine}/report?format=pdf", 422),
        *(
            Hostile(
                f"statistics for the model {each[:20]}",
                "GET",
                f"{NO_STATISTICS}?model={each}",
                status,
            )
            for each, status in (
                ("http://169.254.169.254/latest", 422),
                ("..%2f..%2fetc", 422),
                ("local/..%2f..", 422),
                ("local/%00", 422),
                ("a" * 201, 422),
                ("local/tiny", 404),
            )
        ),
        Hostile(
            "statistics of another tenant's rows", "GET", "/v1/datasets/{dataset}/statistics?model=local/tiny", 404
        ),
        Hostile("datasets?sha256 that is none", "GET", "/v1/datasets?sha256=" + "g" * 64, 422),
        Hostile("a label that is not UTF-8", "GET", "/v1/jobs?label=%ff%fe", 200),
        Hostile("a label that is SQL", "GET", "/v1/jobs?label=a'%20OR%20'1'='1", 200),
    ]
    return cases


def _headers() -> list[Hostile]:
    artifact, events, stream = (
        "/v1/jobs/{mine}/artifacts/config.json",
        "/v1/jobs/{mine}/events",
        {"Accept": "text/event-stream"},
    )
    unsatisfiable = ["bytes=99999-", f"bytes={LONG}-", "bytes=-0"]
    ignored = [
        "bytes=5-1",
        "bytes=0-0,1-1",
        "bytes=" + "0-0," * 5000,
        "lines=1-2",
        "bytes=a-b",
        "bytes=--1",
        "bytes=",
        "x" * 9000,
    ]
    cases = [Hostile(f"range {each[:30]}", "GET", artifact, 416, {"Range": each}) for each in unsatisfiable]
    cases += [Hostile(f"range {each[:30]}", "GET", artifact, 200, {"Range": each}) for each in ignored]
    cases += [
        Hostile("if-match of nothing", "GET", artifact, 412, {"If-Match": '"0"'}),
        Hostile("if-none-match without end", "GET", artifact, 200, {"If-None-Match": '"' * 5000}),
        Hostile("accept of nothing", "GET", "/v1/jobs/{mine}/report", 406, {"Accept": "image/png"}),
        Hostile(
            "accept with a weight that is none", "GET", events, 406, {"Accept": "application/json;q=NaN,text/x;q=1e999"}
        ),
        Hostile("accept without end", "GET", events, 406, {"Accept": "a/b," * 3000}),
    ]
    cases += [
        Hostile(f"last event {each[:20]!r}", "GET", events, 400, {**stream, "Last-Event-ID": each})
        for each in ("-1", "x", LONG, "1e3", "\u00b2".encode(), "99", "0x1", "1 2")
    ]
    cases += [
        Hostile(f"idempotency key {each[:20]!r}", "POST", "/v1/jobs", 422, {**JSON, "Idempotency-Key": each}, job())
        for each in ("", " ", "a b", "k" * 256, "é".encode(), b"\xff", "a\tb")
    ]
    tokens = [
        "",
        "Bearer",
        "Bearer ",
        "Basic YTpi",
        "Bearer x",
        "bearer " + "k" * 7000,
        "Bearer qe_' OR '1'='1",
        b"Bearer \xff\xfe",
        "Bearer null",
        "Bearer a b",
        "Token x",
        "Bearer qe_" + "A" * 43,
    ]
    cases += [
        Hostile(f"authorization {each[:24]!r}", "GET", "/v1/jobs", 401, {"Authorization": each}) for each in tokens
    ]
    cases += [
        Hostile(
            "content type of something else", "POST", "/v1/jobs", 422, {"Content-Type": "text/xml"}, b"<!DOCTYPE x>"
        ),
        Hostile(
            "a charset that is none", "POST", "/v1/jobs", 201, {"Content-Type": "application/json; charset=x"}, job()
        ),
        Hostile(
            "a compressed body that nobody asked for",
            "POST",
            "/v1/jobs",
            400,
            {**JSON, "Content-Encoding": "gzip"},
            b"\x1f\x8b\x08",
        ),
        Hostile("a host of another", "GET", "/v1/jobs/{mine}", 200, {"Host": "evil.example"}),
        Hostile("a forwarded address", "GET", "/v1/jobs/{mine}", 200, {"X-Forwarded-For": "' OR 1=1 --" * 100}),
    ]
    return cases


def _bodies() -> list[Hostile]:
    malformed = {
        "cut off": b"{",
        "not UTF-8": b"\xff\xfe\x00",
        "a deep object": b'{"model": ' * 20_000,
        "a deep array": b"[" * 100_000,
        "a number of 5000 digits": b'{"timeout_s": ' + b"9" * 5_000 + b"}",
        "two objects": job() + job(),
        "a comment": b"// x\n" + job(),
        "single quotes": b"{'a': 1}",
        "a bare word": b"undefined",
    }
    cases = [Hostile(f"body: {what}", "POST", "/v1/jobs", 400, JSON, body) for what, body in malformed.items()]
    wrong: dict[str, bytes] = {
        "nothing": b"",
        "UTF-16": "{}".encode("utf-16"),
        "null": b"null",
        "an array": b"[]",
        "a string": b'"x"',
        "a number": b"1e400",
        "NaN": b'{"timeout_s": NaN}',
        "an infinite limit": job()[:-1] + b', "accept_if": {"max_kl": Infinity}}',
        "a limit that is no number": job()[:-1] + b', "accept_if": {"max_kl": NaN}}',
        "an infinite target": job(scheme="auto")[:-1] + b', "target": {"max_kl": 1e999}}',
        "no fields": b"{}",
        "a field too many": job(admin=True),
        "prototype pollution": job(__proto__={"admin": True}),
        "model as a string": job(model="acme/m"),
        "model as an array": job(model=[{"id": "acme/m"}]),
        "model that is a path": job(model={"id": "local/../../etc"}),
        "model that is absolute": job(model={"id": "/etc/passwd"}),
        "model that is an address": job(model={"id": "http://evil/x"}),
        "model with a zero": job(model={"id": "a/b\0"}),
        "model with a line": job(model={"id": "a/b\n"}),
        "model of 10 000 letters": job(model={"id": "a/" + "b" * 10_000}),
        "revision that is a path": job(model={"id": "a/b", "revision": "../x"}),
        "revision that is an option": job(model={"id": "a/b", "revision": "--upload-pack=x"}),
        "local model that is not there": job(model={"id": "local/absent"}),
        "local model above the root": job(model={"id": "local/.."}),
        "dataset of another": job(calibration={"dataset": "{dataset}"}),
        "dataset that is a path": job(calibration={"dataset": "../rows"}),
        "split with a slash": job(calibration={"dataset": "a/b", "split": "../x"}),
        "scheme of 9 bits": job(scheme="W9A9"),
        "scheme with a line": job(scheme="W4A6\n"),
        "scheme in full width": job(scheme="Ｗ４Ａ６"),
        "scheme as a number": job(scheme=4),
        "method that is none": job(method="__import__('os')"),
        "ranks below zero": job(options={"shared_rank": -1}),
        "a rank of 2**63": job(options={"shared_rank": 2**63}),
        "a rank as text": job(options={"shared_rank": "a"}),
        "a seed of 2**64": job(options={"seed": 2**64}),
        "half a sample": job(options={"samples": 0.5}),
        "an option that is none": job(options={"trust_remote_code": True}),
        "a share of two": job(options={"sensitive": {"share": 2}}),
        "5000 groups": job(options={"sensitive": {"groups": ["g"] * 5000}}),
        "no time": job(timeout_s=0),
        "too much time": job(timeout_s=10**9),
        "limits of nothing": job(accept_if={}),
        "a limit below zero": job(accept_if={"max_kl": -1}),
        "a target without auto": job(target={"max_kl": 1}),
        "a name with a zero": job(name="\0"),
        "a name with a surrogate": job(name="\ud800"),
        "a name that rings": job(name="\x07"),
        "an empty name": job(name=""),
        "a name of 121": job(name="n" * 121),
        "labels as an array": job(labels=["a"]),
        "33 labels": job(labels={f"k{n}": "v" for n in range(33)}),
        "a label in capitals": job(labels={"A": "v"}),
        "a label with a surrogate": job(labels={"a": "\udfff"}),
        "a label that is deep": job(labels={"a": {"b": "c"}}),
        "an alias of the house": job(alias="qe/" + NOTHING),
        "an alias that is a path": job(alias="../x"),
    }
    cases += [Hostile(f"body: {what}", "POST", "/v1/jobs", 422, JSON, body) for what, body in wrong.items()]
    harmless = {
        "a name from right to left": job(name="\u202egpj.exe"),
        "a name of four-byte letters": job(name="𝕏" * 100),
        "a name that is markup": job(name="<script>alert(1)</script>"),
        "a name that is a formula": job(name="=cmd|' /C calc'!A0"),
        "a field twice": b'{"scheme": "W9A9", ' + job()[1:],
    }
    cases += [Hostile(f"body: {what}", "POST", "/v1/jobs", 201, JSON, body) for what, body in harmless.items()]
    cases += [Hostile("body: 300 000 blanks", "POST", "/v1/jobs", 413, JSON, b" " * 300_000)]
    keys: dict[str, bytes] = {
        "no scopes": b'{"name":"k","scopes":[]}',
        "a scope that is none": b'{"name":"k","scopes":["root"]}',
        "a tenant that is a path": b'{"name":"k","scopes":["jobs:read"],"tenant":"../x"}',
        "an expiry as a number": b'{"name":"k","scopes":["jobs:read"],"expires_at":0}',
        "a name with a line": b'{"name":"a\\nb","scopes":["jobs:read"]}',
        "a key of one's own": b'{"name":"k","scopes":["jobs:read"],"key":"x"}',
    }
    return cases + [Hostile(f"key: {what}", "POST", "/v1/keys", 422, JSON, body) for what, body in keys.items()]


def _uploads() -> list[Hostile]:
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    upload = "/v1/datasets"
    bomb = png(50_000, 50_000, b"\0" * 1000)
    deep = b'{"messages": ' + b"[" * 50_000 + b"\n"
    invalid: dict[str, bytes] = {
        "an empty file": form(b""),
        "no JSON": form(b"hello\n"),
        "an array": form(b"[]\n"),
        "no messages": form(b"{}\n"),
        "not UTF-8": form(b"\xff\xfe\n"),
        "deep": form(deep),
        "messages as text": form(b'{"messages": "q"}\n'),
        "a role that is none": form(b'{"messages": [{"role": "root", "content": "q"}]}\n'),
        "a zero in the text": form(row(messages=[{"role": "user", "content": 5}])),
        "an image by address": form(
            with_image(b"").replace(b"data:image/png;base64,", b"http://169.254.169.254/latest")
        ),
        "an image by path": form(with_image(b"").replace(b"data:image/png;base64,", b"file:///etc/passwd")),
        "an image bomb": form(with_image(bomb)),
        "an image that is none": form(with_image(b"not an image")),
        "an SVG": form(with_image(b"<svg onload='x'/>", "image/svg+xml")),
        "a GIF": form(with_image(b"GIF89a" + b"\0" * 20, "image/gif")),
        "a PNG of no size": form(with_image(png(0, 0))),
        "half a PNG": form(with_image(png(8, 8)[:20])),
        "half of base64": form(with_image(b"abc").replace(b"YWJj", b"YW*j")),
        "a zip": form(b"PK\x03\x04" + b"\0" * 100, filename="rows.zip"),
        "a gzip": form(b"\x1f\x8b\x08" + b"\0" * 100),
        "a Parquet of nothing but magic": form(b"PAR1PAR1", filename="rows.parquet"),
        "a Parquet with a footer of 4 GB": form(b"PAR1" + b"\0" * 8 + b"\xff\xff\xff\xffPAR1", filename="rows.parquet"),
        "a Parquet of garbage": form(
            b"PAR1" + b"\xa5" * 500 + struct.pack("<I", 500) + b"PAR1", filename="rows.parquet"
        ),
        "a pickle": form(b"\x80\x04\x95" + b"cos\nsystem\n", filename="rows.pkl"),
        "a field too many": b'--x\r\nContent-Disposition: form-data; name="path"\r\n\r\n/etc\r\n' + form(row()),
        "two files": form(row(), end="") + form(row()),
        "no file": form(row(), disposition='form-data; name="name"'),
        "a part without a name": form(row(), disposition="form-data"),
        "a name of 2000 bytes": form(b"n" * 2000, disposition='form-data; name="name"'),
    }
    cases = [Hostile(f"upload: {what}", "POST", upload, 422, kind, body) for what, body in invalid.items()]
    broken = {
        "no last boundary": form(row(), end=""),
        "cut off in its head": b"--x\r\nContent-Dispo",
        "nothing": b"",
        "the wrong boundary": form(row()).replace(b"--x", b"--y"),
    }
    cases += [Hostile(f"upload: {what}", "POST", upload, 400, kind, body) for what, body in broken.items()]
    cases += [
        Hostile("upload: no boundary", "POST", upload, 415, {"Content-Type": "multipart/form-data"}, form(row())),
        Hostile(
            "upload: a boundary of 300",
            "POST",
            upload,
            415,
            {"Content-Type": "multipart/form-data; boundary=" + "x" * 300},
        ),
        Hostile("upload: JSON", "POST", upload, 415, JSON, row()),
        Hostile("upload: 5 MB where 4 are allowed", "POST", upload, 413, kind, form(b"x" * 5_000_000)),
        Hostile(
            "upload: a file name that is a path",
            "POST",
            upload,
            201,
            kind,
            form(row(), filename="../../../etc/cron.d/x"),
        ),
        Hostile("upload: a file name with a zero", "POST", upload, 201, kind, form(row(), filename="a\0b")),
        Hostile("upload: a file name of 5000", "POST", upload, 400, kind, form(row(), filename="n" * 5000)),
    ]
    return cases


TABLE = [*_paths(), *_foreign(), *_cursors(), *_queries(), *_headers(), *_bodies(), *_uploads()]

RAW: dict[str, bytes] = {
    "TLS where HTTP is spoken": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "a version that is none": b"GET / HTTP/9.9\r\n\r\n",
    "no version": b"GET /v1/jobs\r\n\r\n",
    "only zeros": b"\0" * 4096,
    "a chunk size that is none": b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n",
    "a chunk of 2**64": b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFF\r\n",
    "length and chunks": b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"0\r\n\r\n"
    b"GET /v1/jobs HTTP/1.1\r\n\r\n",
    "two lengths": b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcd",
    "a length below zero": b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    "a length of 10**30": b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 1" + b"0" * 30 + b"\r\n\r\n",
    "a header without a colon": b"GET /v1/jobs HTTP/1.1\r\nHost: x\r\nnothing\r\n\r\n",
    "a header that goes on": b"GET /v1/jobs HTTP/1.1\r\nHost: x\r\nX: a\r\n b: c\r\n\r\n",
    "a header of a megabyte": b"GET /v1/jobs HTTP/1.1\r\nHost: x\r\nX: " + b"a" * (1 << 20) + b"\r\n\r\n",
    "ten thousand headers": b"GET /v1/jobs HTTP/1.1\r\nHost: x\r\n"
    + b"".join(b"X%d: y\r\n" % n for n in range(10_000))
    + b"\r\n",
    "an address with a line in it": b"GET /v1/jobs\rSet-Cookie: x HTTP/1.1\r\nHost: x\r\n\r\n",
    "an address of another host": b"GET http://169.254.169.254/latest HTTP/1.1\r\nHost: x\r\n\r\n",
    "a tunnel": b"CONNECT 169.254.169.254:80 HTTP/1.1\r\nHost: x\r\n\r\n",
    "an upgrade": b"GET /v1/jobs HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n"
    b"HTTP2-Settings: AAA\r\n\r\n",
    "HTTP/2 at once": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "half a request, then the end": b"GET /v1/jo",
}
"""Bytes that are hardly HTTP: the connection may end, the service goes on, and no answer is a 5xx."""
