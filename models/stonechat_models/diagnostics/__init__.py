"""Reports what this machine has and what a model needs, without loading the model.

May import every other package of `stonechat_models`.
"""
