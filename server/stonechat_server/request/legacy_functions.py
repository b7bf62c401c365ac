"""Translates `functions` and `function_call`, the request fields before tools, to tools.

The answer to such a request has the older format, too: `message.function_call` instead of
`tool_calls`, and `function_call` as `finish_reason`. That format allows one call.
"""

from stonechat_server.errors import invalid
from stonechat_server.schema.requests import ChatCompletionRequest
from stonechat_server.schema.tools import FunctionChoice, FunctionTool, NamedTool, ToolChoice


def with_tools(request: ChatCompletionRequest) -> ChatCompletionRequest:
    """Return the request with its functions as tools and at most one call.

    A request without functions is returned as it is. `functions` stays set, to show that the answer
    needs the older format. Raises `APIError` 400 for a mixture of both formats.
    """
    if request.functions is None:
        _check_function_call(request)
        return request
    if request.tools is not None:
        raise invalid("functions", "functions and tools cannot both be given.")
    if request.tool_choice is not None:
        raise invalid("tool_choice", "tool_choice is for tools; with functions, set function_call.")
    if request.parallel_tool_calls:
        raise invalid(
            "parallel_tool_calls", "parallel_tool_calls is for tools; functions allow one call."
        )
    tool_choice: ToolChoice | None
    if isinstance(request.function_call, NamedTool):
        tool_choice = FunctionChoice(type="function", function=request.function_call)
    else:
        tool_choice = request.function_call
    return request.model_copy(
        update={
            "tools": [FunctionTool(type="function", function=f) for f in request.functions],
            "tool_choice": tool_choice,
            "parallel_tool_calls": False,
        }
    )


def _check_function_call(request: ChatCompletionRequest) -> None:
    function_call = request.function_call
    if function_call is None:
        return
    if request.tools is not None:
        raise invalid(
            "function_call", "function_call is for functions; with tools, set tool_choice."
        )
    if isinstance(function_call, NamedTool):
        raise invalid("function_call", "function_call is only allowed when functions are given.")
