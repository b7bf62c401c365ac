"""`POST /v1/rerank` and `/v1/score`: how well documents answer a question, by a reranker.

`request` and `fields` say what a body may hold. `pairs` encodes the question with each document.
`writer` makes a score of each output of the engine, and the answer of all scores.
"""
