"""What this machine has and what a model would need, found without loading the model.

May import every other package of `stonechat_models`.
"""
