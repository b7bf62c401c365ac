"""Translates the tools of a request, and the choice among them, to those of chat completions."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from stonechat_server.errors import APIError, invalid, unsupported
from stonechat_server.responses_api import tools as wire
from stonechat_server.responses_api.tool_names import ToolNames
from stonechat_server.schema import tools as chat
from stonechat_server.structured.tool_options import MAX_TOOLS, tool_name


@dataclass(slots=True)
class Tools:
    """Chat tools, and the paths in the client's body that they come from."""

    tools: list[chat.Tool] = field(default_factory=list)
    choice: chat.ToolChoice | None = None
    names: ToolNames = field(default_factory=ToolNames)
    paths: list[tuple[str, str]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    """Paths of hosted tools that are left out."""
    used: list[wire.ToolParam] = field(default_factory=list)
    """The client's tools without those that are left out."""

    def add(self, tool: chat.Tool, path: str) -> None:
        """Append a tool that comes from `path`."""
        where = f"tools[{len(self.tools)}].{tool.type}"
        self.paths += [(f"{where}.format.grammar", f"{path}.format"), (where, path)]
        self.tools.append(tool)


def read_tools(given: Sequence[wire.ToolParam], choice: wire.ToolChoice | None) -> Tools:
    """Translate tools. Raises `APIError` 400 for too many, for a hosted tool, and its choice.

    Codex lists its web search beside its own tools in every request, and says whether it may reach
    the web. That one is left out.
    """
    if sum(map(_num_tools, given)) > MAX_TOOLS:
        raise invalid("tools", f"At most {MAX_TOOLS} tools are allowed, with those in namespaces.")
    found = Tools()
    has_others = not all(isinstance(tool, wire.WebSearch) for tool in given)
    for i, tool in enumerate(given):
        path = f"tools[{i}]"
        match tool:
            case wire.Namespace():
                _add_namespace(found, tool, path)
            case wire.WebSearch(external_web_access=True | False) if has_others:
                found.ignored.append(path)
                continue
            case wire.WebSearch() | wire.HostedTool():
                raise _hosted(tool.type, path)
            case _:
                found.add(_to_chat(tool, tool.name, tool.description), path)
        found.used.append(tool)
    found.choice = _to_choice(found, choice)
    return found


def _num_tools(tool: wire.ToolParam) -> int:
    if isinstance(tool, wire.Namespace):
        return len(tool.tools)
    return 0 if isinstance(tool, wire.WebSearch) else 1


def _hosted(kind: str, path: str) -> APIError:
    return unsupported(
        path, f"'{path}' is a hosted tool ({kind}), and this server runs no tools of its own."
    )


def _add_namespace(found: Tools, namespace: wire.Namespace, path: str) -> None:
    """Add the tools of a namespace. Its description stands before that of its first tool."""
    about = namespace.description
    for i, tool in enumerate(namespace.tools):
        name = found.names.add(namespace.name, tool.name)
        texts = [text for text in (about, tool.description) if text]
        found.add(_to_chat(tool, name, "\n\n".join(texts) or None), f"{path}.tools[{i}]")
        about = None


def _to_chat(tool: wire.ClientTool, name: str, description: str | None) -> chat.Tool:
    if isinstance(tool, wire.Function):
        function = chat.FunctionDefinition(
            name=name, description=description, parameters=tool.parameters, strict=tool.strict
        )
        return chat.FunctionTool(type="function", function=function)
    custom = chat.CustomDefinition(name=name, description=description)
    if isinstance(tool.format, wire.Grammar):
        grammar = chat.GrammarDefinition(
            definition=tool.format.definition, syntax=tool.format.syntax
        )
        custom.format = chat.GrammarFormat(type="grammar", grammar=grammar)
    elif tool.format is not None:
        custom.format = tool.format
    return chat.CustomTool(type="custom", custom=custom)


def _to_choice(found: Tools, choice: wire.ToolChoice | None) -> chat.ToolChoice | None:
    if choice is None or isinstance(choice, str):
        return choice
    if isinstance(choice, wire.AllowedTools):
        prefix = "tool_choice.allowed_tools"
        references = []
        for i, reference in enumerate(choice.tools):
            path = f"tool_choice.tools[{i}]"
            references.append(_reference(found, reference, path))
            found.paths.append((f"{prefix}.tools[{i}].{reference.type}", path))
        found.paths.append((prefix, "tool_choice"))
        allowed = chat.AllowedTools(mode=choice.mode, tools=references)
        return chat.AllowedToolsChoice(type="allowed_tools", allowed_tools=allowed)
    found.paths.append((f"tool_choice.{choice.type}", "tool_choice"))
    return _reference(found, choice, "tool_choice")


def _reference(found: Tools, choice: wire.Choice, path: str) -> chat.ToolReference:
    if isinstance(choice, wire.HostedChoice):
        raise _hosted(choice.type, path)
    named = chat.NamedTool(name=_visible_name(found, choice.name))
    if choice.type == "function":
        return chat.FunctionChoice(type="function", function=named)
    return chat.CustomChoice(type="custom", custom=named)


def _visible_name(found: Tools, name: str) -> str:
    """The name that the model sees. A tool in a namespace may be chosen by its own name."""
    is_visible = any(tool_name(tool) == name for tool in found.tools)
    return name if is_visible else found.names.visible_names.get(name, name)
