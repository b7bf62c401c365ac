"""What a server says that it refuses: the message of an error answer, without its JSON."""

import msgspec


def error_text(status: int, body: bytes) -> str:
    """The status, the message and the field that it names; else the start of the body."""
    try:
        error = msgspec.json.decode(body)["error"]
        where = f" ({error['param']})" if error.get("param") else ""
        key = " Give a key with --api-key or the variable OPENAI_API_KEY." if status == 401 else ""
        return f"{status}: {error['message']}{where}{key}"
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError):
        return f"{status}: {body[:300].decode('utf-8', 'replace')}"
