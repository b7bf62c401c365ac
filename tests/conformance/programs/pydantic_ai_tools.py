"""A tool loop with pydantic-ai, over the Responses API and over chat completions."""

import asyncio

from pydantic_ai import Agent


async def main() -> None:
    for model in ("openai:model", "openai-chat:model"):
        agent = Agent(model)

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
