"""Errors name what the client sent, also where its body was translated."""

import pytest

from stonechat_server.errors import APIError, invalid
from stonechat_server.schema.base import WireModel
from stonechat_server.schema.sampling_fields import SamplingFields
from stonechat_server.serving.endpoint import Call


def a_call(*names: tuple[str, str]) -> Call:
    return Call(request=SamplingFields(), wire=WireModel(), names=names)


@pytest.mark.parametrize(
    ("path", "own"),
    [
        ("messages[1].content[0].text", "input[0].content[0].text"),
        ("messages[10].content", "input.content"),
        ("messages", "input"),
        ("tools[2].function.parameters", "tools[2].parameters"),
        ("tools[2].function.name", "tools[2].name"),
        ("temperature", "temperature"),
        ("messages_of_another", "messages_of_another"),
    ],
)
def test_the_longest_prefix_that_ends_at_a_name_counts(path: str, own: str) -> None:
    call = a_call(
        ("messages", "input"),
        ("messages[1]", "input[0]"),
        ("messages[10]", "input"),
        ("tools[2].function", "tools[2]"),
    )
    assert call.own_name(path) == own


def test_the_param_and_the_message_of_an_error_are_renamed() -> None:
    call = a_call(("messages", "input"), ("max_completion_tokens", "max_output_tokens"))
    error = call.named(invalid("messages[0].role", "Invalid 'messages[0].role': no messages."))
    assert error.param == "input[0].role"
    assert error.message == "Invalid 'input[0].role': no messages."
    error = call.named(APIError(400, "Lower max_completion_tokens to 5.", param="n"))
    assert (error.param, error.message) == ("n", "Lower max_output_tokens to 5.")


def test_a_plain_word_in_a_message_is_no_name() -> None:
    call = a_call(("messages", "input"))
    error = call.named(invalid("messages", "No 'messages', or too many messages."))
    assert (error.param, error.message) == ("input", "No 'input', or too many messages.")


def test_without_a_translation_an_error_stays() -> None:
    error = invalid("messages", "Invalid 'messages'.")
    assert a_call().named(error) is error
    assert (error.param, error.message) == ("messages", "Invalid 'messages'.")
