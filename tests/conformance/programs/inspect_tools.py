"""A tool loop with Inspect, over the Responses API, over chat completions and over messages."""

import os

from inspect_ai import Task
from inspect_ai import eval as inspect_eval
from inspect_ai.dataset import Sample
from inspect_ai.model import get_model
from inspect_ai.scorer import includes
from inspect_ai.solver import generate, use_tools
from inspect_ai.tool import Tool, tool


@tool
def get_weather() -> Tool:
    async def execute(city: str) -> str:
        """The weather in a city.

        Args:
            city: Its name.
        """
        return f"sunny in {city}"

    return execute


if __name__ == "__main__":
    task = Task(
        dataset=[Sample(input="What is the weather in Bern?", target="sunny")],
        solver=[use_tools(get_weather()), generate()],
        scorer=includes(),
    )
    models = [
        get_model("openai/model", responses_api=True),
        get_model("openai/model", responses_api=False),
        get_model("anthropic/model"),
    ]
    for log in inspect_eval(task, model=models, display="none", log_dir=os.getcwd()):
        assert log.status == "success", log.error
        assert log.samples is not None
        print(log.samples[0].output.completion)
