"""A tool loop with LangChain, over chat completions, the Responses API and messages."""

from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI


@tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


models = [
    ChatOpenAI(model="model"),
    ChatOpenAI(model="model", use_responses_api=True, store=False),
    ChatOpenAI(model="model", use_responses_api=True, use_previous_response_id=True),
    ChatAnthropic(model="model", max_tokens=100),
]
for model in models:
    with_tools = model.bind_tools([get_weather])
    turns = [HumanMessage("What is the weather in Bern?")]
    called = with_tools.invoke(turns)
    turns += [called, *[get_weather.invoke(call) for call in called.tool_calls]]
    answer = None
    for chunk in with_tools.stream(turns):
        answer = chunk if answer is None else answer + chunk
    print(answer.text)
