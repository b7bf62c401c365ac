"""`POST /v1/embeddings`: texts to vectors, by a model for embeddings or by a model that generates.

`request` and `fields` say what a body may hold. `inputs` encodes its texts. `writer` makes an item
of the answer of each output of the engine, and the answer of all items.
"""
