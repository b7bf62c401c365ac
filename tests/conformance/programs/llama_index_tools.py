"""A tool loop with LlamaIndex."""

import os

from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike


def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


model = OpenAILike(
    model="model",
    api_base=os.environ["OPENAI_BASE_URL"],
    api_key="none",
    is_chat_model=True,
    is_function_calling_model=True,
)
tool = FunctionTool.from_defaults(get_weather)
print(model.predict_and_call([tool], "What is the weather in Bern?").response)
