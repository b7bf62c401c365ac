// A tool loop with the AI SDK, over the Responses API and over chat completions.
import { createOpenAI } from "@ai-sdk/openai";
import { generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const openai = createOpenAI({});
const tools = {
  get_weather: tool({
    description: "The weather in a city.",
    inputSchema: z.object({ city: z.string() }),
    execute: async ({ city }) => `sunny in ${city}`,
  }),
};
const stateless = { store: false, include: ["reasoning.encrypted_content"] };
for (const [model, kept] of [
  [openai("model"), {}],
  [openai("model"), stateless],
  [openai.chat("model"), {}],
]) {
  const providerOptions = { openai: { reasoningSummary: "auto", ...kept } };
  const asked = { role: "user", content: "What is the weather in Bern?" };
  const options = { model, tools, providerOptions, stopWhen: stepCountIs(3) };
  const first = streamText({ ...options, messages: [asked] });
  for await (const text of first.textStream) process.stdout.write(text);
  console.log();
  const { messages } = await first.response;
  const thanks = { role: "user", content: "Thank you." };
  const second = await generateText({ ...options, messages: [asked, ...messages, thanks] });
  console.log(second.text);
}
