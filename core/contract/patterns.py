"""Patterns of the strings that clients send, and what each asks for in words: nobody should have to read a pattern."""

from __future__ import annotations

_SEGMENT = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_ALIAS_SEGMENT = r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_])?"

MODEL = rf"^{_SEGMENT}/{_SEGMENT}$"
DATASET = rf"^{_SEGMENT}(/{_SEGMENT})?$"
REVISION = r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$"
SPLIT = r"^[A-Za-z0-9_.-]{1,64}$"
ALIAS = rf"^{_ALIAS_SEGMENT}/{_ALIAS_SEGMENT}$"
BUCKET = r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$"
DESTINATION = rf"^(hub:{_SEGMENT}/{_SEGMENT}|s3://[a-z0-9][a-z0-9.-]{{1,61}}[a-z0-9](/[A-Za-z0-9_=+@][A-Za-z0-9._=+@-]{{0,127}})*/?)$"
REGION = r"^[a-z0-9-]{1,40}$"
TENANT = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
SHA256 = r"^[0-9a-f]{64}$"
HUB_TOKEN = r"^[!-~]{8,500}$"  # noqa: S105 -- of any
ACCESS_KEY = r"^[!-~]{1,200}$"
WORD = r"^[a-z0-9_.]+$"
LINE = r"^[^\x00-\x1f\x7f-\x9f]+$"
LINE_OR_NOTHING = r"^[^\x00-\x1f\x7f-\x9f]*$"

SAYS = {
    MODEL: "write owner/name, as on the hub, or local/<directory>; letters, digits, '.', '_' and '-'",
    DATASET: "write the ds_… of an upload, or owner/name, as on the hub",
    REVISION: "write a branch, a tag or a commit: letters, digits, '.', '_', '-' and '/'",
    SPLIT: "letters, digits, '.', '_' and '-', at most 64",
    ALIAS: "write team/name: letters, digits, '.', '_' and '-', neither part beginning or ending with '.' or '-'",
    BUCKET: "a bucket's name: 3 to 63 small letters, digits, '.' and '-'",
    DESTINATION: "write hub:owner/name, or s3://bucket/prefix",
    REGION: "a region's name: small letters, digits and '-'",
    TENANT: "small letters, digits and '-' between them, at most 63",
    HUB_TOKEN: "8 to 500 letters, digits and signs, without spaces",
    ACCESS_KEY: "1 to 200 letters, digits and signs, without spaces",
    SHA256: "64 hexadecimal digits, small letters",
    WORD: "small letters, digits, '.' and '_'",
    LINE: "one line of text, not empty and without control characters",
    LINE_OR_NOTHING: "one line of text, without control characters",
}
