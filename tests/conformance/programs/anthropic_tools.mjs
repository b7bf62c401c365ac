// A tool loop with the Anthropic SDK.
import Anthropic from "@anthropic-ai/sdk";
import { betaZodTool } from "@anthropic-ai/sdk/helpers/beta/zod";
import { z } from "zod";

const weather = betaZodTool({
  name: "get_weather",
  description: "The weather in a city.",
  inputSchema: z.object({ city: z.string() }),
  run: ({ city }) => `sunny in ${city}`,
});
const client = new Anthropic();
for (const stream of [true, false]) {
  const runner = client.beta.messages.toolRunner({
    model: "model",
    max_tokens: 4000,
    messages: [{ role: "user", content: "What is the weather in Bern?" }],
    tools: [weather],
    thinking: { type: "enabled", budget_tokens: 1024 },
    stream,
  });
  const last = await runner.runUntilDone();
  console.log(last.content.at(-1).text);
}
