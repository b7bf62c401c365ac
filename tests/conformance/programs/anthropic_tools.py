"""A tool loop with the Anthropic SDK. A second turn sends the first one back."""

from anthropic import Anthropic, beta_tool


@beta_tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


client = Anthropic()
turns = [{"role": "user", "content": "What is the weather in Bern?"}]
runner = client.beta.messages.tool_runner(
    model="model",
    max_tokens=4000,
    messages=turns,
    tools=[get_weather],
    thinking={"type": "enabled", "budget_tokens": 1024},
    stream=True,
)
for stream in runner:
    for text in stream.text_stream:
        print(text, end="")
    turns.append({"role": "assistant", "content": stream.get_final_message().content})
    response = runner.generate_tool_call_response()
    if response is not None:
        turns.append(response)
print()
turns.append({"role": "user", "content": "Thank you."})
answer = client.beta.messages.create(
    model="model", max_tokens=4000, messages=turns, tools=[get_weather.to_dict()]
)
print(answer.content[-1].text)
