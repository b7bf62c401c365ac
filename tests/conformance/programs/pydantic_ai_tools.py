"""A tool loop with pydantic-ai, over the Responses API and over chat completions.

Then one whose requests continue stored responses.
"""

import asyncio

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIResponsesModelSettings


async def main() -> None:
    continues = OpenAIResponsesModelSettings(openai_previous_response_id="auto")
    for model, settings in (
        ("openai:model", None),
        ("openai-chat:model", None),
        ("openai:model", continues),
    ):
        agent = Agent(model, model_settings=settings)

        @agent.tool_plain
        def get_weather(city: str) -> str:
            """The weather in a city."""
            return f"sunny in {city}"

        async with agent.run_stream("What is the weather in Bern?") as first:
            async for text in first.stream_text(delta=True):
                print(text, end="")
        print()
        print((await agent.run("Thank you.", message_history=first.all_messages())).output)


asyncio.run(main())
