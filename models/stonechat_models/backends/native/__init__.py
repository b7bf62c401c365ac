"""The compiled CPU path: decoders like Llama, and mixtures of experts, in a small C++ library.

`supports` says whether a model can be served here, `NativeModel.load` loads it. The library is
compiled on first use (`build.py`); its layouts and invariants are told in `csrc/*.h`.
"""

from stonechat_models.backends.native.model import NativeModel, supports

__all__ = ["NativeModel", "supports"]
