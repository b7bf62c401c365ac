"""What models write of a section of calls if they leave out the mark that opens it."""

from stonechat_server.tool_formats.layout import CallLayout, JsonLayout, ToolFormat


def inner_opening(format: ToolFormat) -> str:
    """The text before a call's name that opens a call also without the section's `trigger`.

    It is empty if the format has none, and if that text is not a tag: it might open other text.
    """
    layout = format.layout
    if not format.trigger or not isinstance(layout, CallLayout):
        return ""
    if layout.id is not None and layout.id.after:
        return ""
    opening = (layout.opening + layout.before_name).strip()
    return opening if "<" in opening else ""


def closing_mark(format: ToolFormat) -> str:
    """The last mark of a section; empty if it has none."""
    layout = format.layout
    if not isinstance(layout, CallLayout):
        return ""
    text = layout.closing or layout.after_arguments
    pieces = (text.lstrip("}]\n ") if isinstance(layout, JsonLayout) else text).split()
    return pieces[-1] if pieces else ""
