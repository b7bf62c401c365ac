"""`POST /v1/completions`: text that continues a prompt, without messages, tools or reasoning.

`request` and `fields` say what a body may hold. `prompts` encodes its prompts, `fill_in` those that
have a suffix. `writer` turns pieces into chunks, and `collect` chunks into the plain answer.
"""
