"""Translates the tools of a request, and the choice among them, to those of chat completions."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from stonechat_server.errors import APIError, invalid, unsupported
from stonechat_server.responses_api import tools as wire
from stonechat_server.responses_api.items import AdditionalTools
from stonechat_server.schema import tools as chat
from stonechat_server.structured.tool_options import MAX_TOOLS, tool_name

FullName = tuple[str | None, str]
"""A namespace, or None, and a tool's name in it."""


@dataclass(slots=True)
class Tools:
    """Chat tools, and the paths in the client's body that they come from."""

    tools: list[chat.Tool] = field(default_factory=list)
    choice: chat.ToolChoice | None = None
    full_names: dict[str, FullName] = field(default_factory=dict)
    """The tools that are in a namespace, by the names that the model sees."""
    paths: list[tuple[str, str]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    """Paths of hosted tools that are left out."""
    used: list[wire.ToolParam] = field(default_factory=list)
    """The client's tools without those that are left out."""
    taken: set[str] | None = None
    """Set: tools with these names are not added again."""

    def add(self, tool: chat.Tool, path: str) -> None:
        """Append a tool that comes from `path`, unless its name is taken."""
        if self.taken is not None:
            if tool_name(tool) in self.taken:
                return
            self.taken.add(tool_name(tool))
        where = f"tools[{len(self.tools)}].{tool.type}"
        self.paths += [(f"{where}.format.grammar", f"{path}.format"), (where, path)]
        self.tools.append(tool)

    def full_name(self, name: str) -> FullName:
        """The namespace and the own name of a tool that the model has called."""
        return self.full_names.get(name, (None, name))

    def visible_name(self, name: str) -> str:
        """The name that the model sees. A tool in a namespace may be chosen by its own name."""
        if any(tool_name(tool) == name for tool in self.tools):
            return name
        names = (visible for visible, (_, own) in self.full_names.items() if own == name)
        return next(names, name)


def read_tools(
    given: Sequence[wire.ToolParam],
    choice: wire.ToolChoice | None,
    items: Sequence[tuple[str, AdditionalTools]] = (),
) -> Tools:
    """Translate the tools of a request, and those of its `items`, each with its path.

    An item's tool is left out if there is one of its name before it: clients repeat them. Codex
    lists its searches, for the web and for other tools, beside its own tools in every request, and
    says where they run. Those are left out. Raises `APIError` 400 for too many tools, for another
    hosted tool, and its choice.
    """
    added = [
        (f"{path}.tools[{i}]", tool) for path, item in items for i, tool in enumerate(item.tools)
    ]
    every = [*given, *(tool for _, tool in added)]
    if sum(map(_num_tools, given)) > MAX_TOOLS:
        raise _too_many()
    has_others = not all(isinstance(tool, wire.WebSearch | wire.ToolSearch) for tool in every)
    found = Tools()
    for i, tool in enumerate(given):
        if _is_left_out(tool, has_others):
            found.ignored.append(f"tools[{i}]")
        else:
            _add(found, tool, f"tools[{i}]")
            found.used.append(tool)
    found.taken = {tool_name(tool) for tool in found.tools}
    for path, tool in added:
        if _is_left_out(tool, has_others):
            found.ignored.append(path)
        else:
            _add(found, tool, path)
    if len(found.tools) > MAX_TOOLS:
        raise _too_many()
    found.choice = _to_choice(found, choice)
    return found


def _num_tools(tool: wire.ToolParam) -> int:
    if isinstance(tool, wire.Namespace):
        return len(tool.tools)
    return 0 if isinstance(tool, wire.WebSearch | wire.ToolSearch) else 1


def _too_many() -> APIError:
    return invalid("tools", f"At most {MAX_TOOLS} tools are allowed, with those in namespaces.")


def _is_left_out(tool: wire.ToolParam, has_others: bool) -> bool:
    match tool:
        case wire.WebSearch(external_web_access=True | False) | wire.ToolSearch(execution="client"):
            return has_others
    return False


def _add(found: Tools, tool: wire.ToolParam, path: str) -> None:
    match tool:
        case wire.Namespace():
            _add_namespace(found, tool, path)
        case wire.WebSearch() | wire.ToolSearch() | wire.HostedTool():
            raise _hosted(tool.type, path)
        case _:
            found.add(_to_chat(tool, tool.name, tool.description), path)


def _hosted(kind: str, path: str) -> APIError:
    return unsupported(
        path, f"'{path}' is a hosted tool ({kind}), and this server runs no tools of its own."
    )


def _add_namespace(found: Tools, namespace: wire.Namespace, path: str) -> None:
    """Add the tools of a namespace. Its description stands before that of its first tool."""
    about = namespace.description
    for i, tool in enumerate(namespace.tools):
        name = wire.joined_name(namespace.name, tool.name)
        found.full_names[name] = namespace.name, tool.name
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
    named = chat.NamedTool(name=found.visible_name(choice.name))
    if choice.type == "function":
        return chat.FunctionChoice(type="function", function=named)
    return chat.CustomChoice(type="custom", custom=named)
