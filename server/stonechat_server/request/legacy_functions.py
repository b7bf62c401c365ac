"""`functions` and `function_call`, the request fields before tools, as the tools they stand for.

Such a request is answered in its own form: `message.function_call` in place of `tool_calls`, and
`finish_reason` `function_call`. That form has room for one call.
"""

from stonechat_server.errors import invalid
from stonechat_server.schema.requests import ChatCompletionRequest
from stonechat_server.schema.tools import FunctionChoice, FunctionTool, NamedTool, ToolChoice


def with_tools(request: ChatCompletionRequest) -> ChatCompletionRequest:
    """The request with its functions as tools, one call at most; others as they are.

    `functions` stays set: it tells in which form to answer. Raises `APIError` 400 for a mixture
    of both forms.
    """
    if request.functions is None:
        _check_choice(request)
        return request
    if request.tools is not None:
        raise invalid("functions", "functions and tools cannot both be given.")
    if request.tool_choice is not None:
        raise invalid("tool_choice", "tool_choice goes with tools; functions have function_call.")
    if request.parallel_tool_calls:
        raise invalid("parallel_tool_calls", "With functions there is at most one call.")
    choice: ToolChoice | None
    if isinstance(request.function_call, NamedTool):
        choice = FunctionChoice(type="function", function=request.function_call)
    else:
        choice = request.function_call
    return request.model_copy(
        update={
            "tools": [FunctionTool(type="function", function=f) for f in request.functions],
            "tool_choice": choice,
            "parallel_tool_calls": False,
        }
    )


def _check_choice(request: ChatCompletionRequest) -> None:
    choice = request.function_call
    if choice is None:
        return
    if request.tools is not None:
        raise invalid("function_call", "function_call goes with functions; tools have tool_choice.")
    if isinstance(choice, NamedTool):
        raise invalid("function_call", "function_call is only allowed when functions are given.")
