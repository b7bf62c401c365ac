// A tool loop with the OpenAI Agents SDK. A second turn sends the first one back.
import { Agent, run, setTracingDisabled, tool } from "@openai/agents";
import { z } from "zod";

setTracingDisabled(true);
const weather = tool({
  name: "get_weather",
  description: "The weather in a city.",
  parameters: z.object({ city: z.string() }),
  execute: async ({ city }) => `sunny in ${city}`,
});
const agent = new Agent({
  name: "a",
  model: "model",
  tools: [weather],
  modelSettings: { store: false, reasoning: { effort: "low", summary: "auto" } },
});
const first = await run(agent, "What is the weather in Bern?", { stream: true });
for await (const text of first.toTextStream()) process.stdout.write(text);
await first.completed;
console.log();
const turns = [...first.history, { role: "user", content: "Thank you." }];
console.log((await run(agent, turns)).finalOutput);
