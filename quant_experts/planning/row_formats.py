"""Calibration rows as people have them, brought to the one form of chat templates.

Library, planner, client and service read every row through ``canonical``, so that it means the same everywhere. The
form is ``{"messages": [{"role", "content"}], "images"?: [...]}``; content is a string or a list of
``{"type": "text" | "image" | "video" | "audio"}`` parts, and a video is the list of its frames. Read as well are rows
of ShareGPT, LLaVA and LLaMA-Factory (``conversations``, ``from``, ``value``; ``<image>`` in the text) and TRL
(``images`` beside strings), and the parts of OpenAI, Anthropic and Qwen-VL. What can be understood in two ways is
refused, in one line that says what was seen and what to write instead.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeGuard

from quant_experts.spec.limits import MOST_FRAMES

COLUMNS = (
    "messages",
    "conversations",
    "prompt",
    "completion",
    "system",
    "tools",
    "choices",
    "images",
    "image",
    "audios",
    "videos",
)
"""What is read of a row: those of a Parquet file that are not named here need not be unpacked."""
TURNS = ("messages", "conversations", "prompt")
"""The columns that can hold a conversation."""
WANTED = 'expected {"messages": [...]} with at least one message'
ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "observation": "tool",
    "function_response": "tool",
    "developer": "system",
}
"""Names that other formats have for the roles of chat templates."""
MAGIC = {"iVBORw0KGgo": "image/png", "/9j/": "image/jpeg", "UklGR": "image/webp", "R0lGOD": "image/gif"}
"""How base64 begins that encodes an image."""
BASE64 = re.compile(r"[A-Za-z0-9+/\s]+={0,2}\s*")
NUMBERED = re.compile(r"<\|?(image|audio|video)[ _]?\d+\|?>")
PART_KEYS = ("text", "image", "image_url", "video", "audio")
FRAMES = (
    "a video is the list of its frames, as images: a video file is not decoded here. Take its frames out of it, for "
    "example ffmpeg -i clip.mp4 -vf fps=2 frames/%04d.png, and say how many a second beside them as fps"
)
MOST_FPS = 1000
INSTEAD = '{"messages": [{"role": "user", "content": "%s"}, {"role": "assistant", "content": "%s"}]}'
OTHERS = (
    (("instruction", "output"), "Alpaca", ("<instruction and input>", "<output>")),
    (("question", "answer"), "question and answer", ("<image><question>", "<answer>")),
    (("question", "answers"), "question and answers", ("<image><question>", "<one answer>")),
    (("query", "response"), "query and response", ("<query>", "<response>")),
    (("prompt", "chosen"), "preference pairs", ("<prompt>", "<chosen>")),
    (("prompt", "completion"), "prompt and completion as text", ("<prompt>", "<completion>")),
    (("prompt", "response"), "prompt and response", ("<prompt>", "<response>")),
    (("image", "caption"), "captions", ("<image>Describe the image.", "<caption>")),
)
"""Formats that do not say which of their texts a model would have been shown, and how."""


class UnknownRow(ValueError):
    """The message says what was seen and what to write instead. ``pointer``: JSON pointer into the row."""

    def __init__(self, pointer: str, detail: str) -> None:
        super().__init__(detail)
        self.pointer = pointer


def canonical(row: Any) -> dict[str, Any]:
    """The row in the one form; what is in that form already stays as it is. Raises UnknownRow.

    Only what tells formats apart is looked at: whether roles are known, texts are texts and images are there is for
    those to check that use the row.
    """
    if not isinstance(row, dict):
        raise UnknownRow("/messages", f"a {kind_of(row)}; {WANTED}")
    messages = [_message(pointer, turn) for pointer, turn in _turns(row)]
    system = row.get("system")
    if isinstance(system, str) and system.strip() and _role(messages[0]) != "system":
        messages.insert(0, {"role": "system", "content": system})
    result = {key: value for key, value in row.items() if key not in ("conversations", "prompt", "completion", "image")}
    result["messages"] = messages
    for kind, name in (("image", "images"), ("video", "videos"), ("audio", "audios")):
        media = _offered(row, kind)
        if media is not None:
            result[name] = media
            result["messages"] = _placed(result["messages"], kind, media)
    for kind in ("video", "audio"):
        media = result.pop(f"{kind}s", None)
        if media is not None:
            _give(result["messages"], kind, media)
    return result


def of_columns(columns: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a Parquet file as JSON would have it: conversations may be JSON in a string, and Arrow fills the fields
    that a part does not have with null."""
    row = {name: without_nulls(value) for name, value in columns.items() if value is not None}
    for name in TURNS:
        if isinstance(row.get(name), str) and row[name].lstrip().startswith("["):
            try:
                row[name] = json.loads(row[name])
            except (ValueError, RecursionError):
                raise UnknownRow(f"/{name}", f"{name} is a string that is not JSON; {WANTED}") from None
    return row


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [without_nulls(inner) for inner in value]
    return value


def kind_of(value: Any) -> str:
    """In the words of JSON."""
    names: dict[type, str] = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number" if isinstance(value, int | float) else type(value).__name__)


def _turns(row: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """With a JSON pointer each."""
    for name in ("messages", "conversations"):
        if isinstance(row.get(name), list) and row[name]:
            return iter([(f"/{name}/{index}", turn) for index, turn in enumerate(row[name])])
    prompt, completion = row.get("prompt"), row.get("completion")
    if "messages" not in row and _is_conversation(prompt) and _is_conversation(completion):
        both = (("/prompt", prompt), ("/completion", completion))
        return iter([(f"{name}/{index}", turn) for name, turns in both for index, turn in enumerate(turns)])
    is_known = "messages" in row or not row
    raise UnknownRow("/messages", WANTED if is_known else f"{WANTED}; {what_it_is(row)}")


def _is_conversation(turns: Any) -> TypeGuard[list[Any]]:
    return isinstance(turns, list) and bool(turns) and all(isinstance(turn, dict) and "role" in turn for turn in turns)


def what_it_is(names: Iterable[str]) -> str:
    """What was seen, of a row's or a file's columns, and what to write instead."""
    names = list(names)
    for keys, name, texts in OTHERS:
        if all(key in names for key in keys):
            return f"it has {' and '.join(keys)} ({name}): write {INSTEAD % texts}"
    short = [name if len(name) <= 30 else f"{name[:27]}..." for name in names][:6]
    more = ", …" if len(names) > len(short) else ""
    return f"it has {', '.join(short)}{more}: write {INSTEAD % ('…', '…')}"


def _message(pointer: str, turn: Any) -> Any:
    if not isinstance(turn, dict):
        return turn
    message = dict(turn)
    if "role" not in message and "from" in message:
        message["role"] = message.pop("from")
        if "content" not in message:
            message["content"] = message.pop("value", None)
    role = message.get("role")
    if role == "function_call":
        form = '{"role": "assistant", "tool_calls": [{"type": "function", "function": {"name", "arguments"}}]}'
        raise UnknownRow(f"{pointer}/from", f"a turn from function_call: write it as {form}")
    if isinstance(role, str):
        message["role"] = ROLES.get(role, role)
    if isinstance(message.get("content"), list):
        parts = enumerate(message["content"])
        message["content"] = [_part(f"{pointer}/content/{index}", part) for index, part in parts]
    return message


def _part(pointer: str, part: Any) -> Any:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, dict):
        return part
    kind = part.get("type")
    if kind is None:
        keys = [key for key in PART_KEYS if part.get(key) is not None]
        if len(keys) != 1:
            return part
        kind = keys[0]
    if kind in ("input_text", "output_text"):
        return {**part, "type": "text"}
    if kind in ("image", "image_url", "input_image"):
        return _image_part(part)
    if kind == "video":
        return _video_part(pointer, part)
    if kind == "input_audio" and isinstance(part.get("input_audio"), dict):
        sound = part["input_audio"]
        return {"type": "audio", "audio": f"data:audio/{sound.get('format', 'wav')};base64,{sound.get('data', '')}"}
    if kind in ("tool_use", "tool_result"):
        form = "tool_calls of the assistant's message" if kind == "tool_use" else "a message of role tool"
        raise UnknownRow(f"{pointer}/type", f"a part of type {kind} (Anthropic): write it as {form}")
    return {**part, "type": kind}


def _image_part(part: dict[str, Any]) -> dict[str, Any]:
    source = next((part[name] for name in ("image", "path", "url", "image_url", "source") if part.get(name)), None)
    return {"type": "image"} if source is None else {"type": "image", "image": source_of(source)}


def _video_part(pointer: str, part: dict[str, Any]) -> dict[str, Any]:
    source = next((part[name] for name in ("video", "frames", "path", "url") if part.get(name)), None)
    others = {name: part[name] for name in ("fps",) if part.get(name) is not None}
    return {"type": "video", **others} | ({} if source is None else {"video": _frames(f"{pointer}/video", source)})


def _frames(pointer: str, source: Any) -> list[Any]:
    if not isinstance(source, list):
        raise UnknownRow(pointer, FRAMES)
    return [source_of(frame) for frame in source]


def problem_of_video(part: Mapping[str, Any]) -> tuple[str, str] | None:
    """What is wrong with a video part in the one form, but for its frames, and the entry that is; None for nothing."""
    frames, fps = part.get("video"), part.get("fps")
    if not isinstance(frames, list) or not frames:
        return "video", "a video part without frames, and no further entry in videos"
    if len(frames) > MOST_FRAMES:
        return "video", f"{len(frames)} frames, at most {MOST_FRAMES} are accepted: take fewer a second"
    if fps is not None and (isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps <= MOST_FPS):
        return "fps", f"fps is {fps!r}, expected a number of frames a second"
    return None


def source_of(source: Any) -> Any:
    """A path, URL or data URI as a string, bytes, or ``{"bytes", "path"}`` as image columns have it."""
    if isinstance(source, dict):
        if source.get("type") == "base64" and isinstance(source.get("data"), str):  # Anthropic
            return f"data:{source.get('media_type', 'image/png')};base64,{source['data']}"
        if isinstance(source.get("bytes"), str):
            return source_of(source["bytes"])
        if source.get("bytes") is None and "path" not in source:
            inner = next(
                (source[name] for name in ("url", "image_url", "image") if isinstance(source.get(name), str)), None
            )
            return source if inner is None else source_of(inner)
    if isinstance(source, str):
        kind = next((media for magic, media in MAGIC.items() if source.startswith(magic)), None)
        if kind is not None and len(source) > 60 and BASE64.fullmatch(source):
            return f"data:{kind};base64,{''.join(source.split())}"
    return source


def _offered(row: dict[str, Any], kind: str) -> list[Any] | None:
    """The images, or sounds, that stand beside the conversation; None where there are none. What is no list of them
    is left for the check that names it."""
    beside = [name for name in (f"{kind}s", kind) if row.get(name)]
    if kind != "image":
        beside = [name for name in beside if name == f"{kind}s"]
    if not beside:
        return None
    if len(beside) == 2:
        raise UnknownRow(f"/{kind}s", f"the row has both {kind} and {kind}s: leave one of them out")
    media = row[beside[0]]
    if isinstance(media, dict | str | bytes):
        media = [media]
    if not isinstance(media, list):
        raise UnknownRow(f"/{beside[0]}", f"a {kind_of(media)}; expected a list")
    return [
        _frames(f"/{beside[0]}/{at}", each) if kind == "video" else source_of(each) for at, each in enumerate(media)
    ]


def _placed(messages: list[Any], kind: str, media: list[Any]) -> list[Any]:
    """The messages with a part for each of ``media``: where the texts say ``<image>``, else before the first text of
    the user. Messages that have such parts already say it themselves."""
    if any(part.get("type") == kind for part in _parts(messages)):
        return messages
    mark = f"<{kind}>"
    texts = [text for message in messages for text in _texts(message)]
    count = sum(text.count(mark) for text in texts)
    if count == len(media):
        return [_split(message, kind) for message in messages]
    numbered_mark = next((match.group() for text in texts if (match := NUMBERED.search(text))), None)
    if count or numbered_mark is not None:
        marks = f"{count} {mark}" if count else numbered_mark
        raise UnknownRow(
            f"/{kind}s", f"{len(media)} {kind}s but {marks} in the texts: write {mark} once where each belongs"
        )
    first = next((index for index, message in enumerate(messages) if _role(message) == "user"), None)
    if first is None or not isinstance(messages[first].get("content"), str):
        return messages
    parts = [*({"type": kind} for _ in media), {"type": "text", "text": messages[first]["content"]}]
    return [*messages[:first], {**messages[first], "content": parts}, *messages[first + 1 :]]


def _give(messages: list[Any], kind: str, media: Any) -> None:
    """Each of ``media`` to the part that it belongs to, as a source of its own."""
    if not isinstance(media, list):
        raise UnknownRow(f"/{kind}s", f"a {kind_of(media)}; expected a list")
    parts = [part for part in _parts(messages) if part.get("type") == kind and part.get(kind) is None]
    if len(parts) != len(media):
        raise UnknownRow(f"/{kind}s", f"{len(media)} {kind}s but {len(parts)} {kind} parts in messages")
    for part, each in zip(parts, media, strict=True):
        part[kind] = each


def _split(message: Any, kind: str) -> Any:
    """``<image>`` in texts becomes a part of its own. The line breaks around it go: the template writes its own."""
    content = message.get("content") if isinstance(message, dict) else None
    mark = f"<{kind}>"
    if isinstance(content, str):
        if mark not in content:
            return message
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list):
        return message
    parts: list[Any] = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
        if not isinstance(text, str) or mark not in text:
            parts.append(part)
            continue
        for index, piece in enumerate(text.split(mark)):
            parts += [{"type": kind}] if index else []
            parts += [{"type": "text", "text": piece.strip("\r\n")}] if piece.strip() else []
    return {**message, "content": parts}


def _role(message: Any) -> Any:
    return message.get("role") if isinstance(message, dict) else None


def _parts(messages: list[Any]) -> Iterator[dict[str, Any]]:
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        yield from (part for part in content if isinstance(part, dict)) if isinstance(content, list) else ()


def _texts(message: Any) -> Iterator[str]:
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, str):
        yield content
    for part in _parts([message]):
        if part.get("type") == "text" and isinstance(part.get("text"), str):
            yield part["text"]
