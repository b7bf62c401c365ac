"""A tool loop with the OpenAI Agents SDK, streamed. A second turn sends the first one back.

Then the same with stored responses, which the later requests continue.
"""

import asyncio

from agents import Agent, ModelSettings, Runner, function_tool, set_tracing_disabled
from openai.types.shared import Reasoning


@function_tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


async def main() -> None:
    set_tracing_disabled(True)
    settings = ModelSettings(
        store=False,
        reasoning=Reasoning(effort="low", summary="auto"),
        response_include=["reasoning.encrypted_content"],
    )
    agent = Agent(name="a", model="model", tools=[get_weather], model_settings=settings)
    streamed = Runner.run_streamed(agent, "What is the weather in Bern?")
    async for event in streamed.stream_events():
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
            print(event.data.delta, end="")
    print()
    turns = [*streamed.to_input_list(), {"role": "user", "content": "Thank you."}]
    print((await Runner.run(agent, turns)).final_output)
    agent = Agent(name="a", model="model", tools=[get_weather])
    first = await Runner.run(agent, "What is the weather in Bern?", auto_previous_response_id=True)
    print(first.final_output)
    previous = first.last_response_id
    print((await Runner.run(agent, "Thank you.", previous_response_id=previous)).final_output)


asyncio.run(main())
