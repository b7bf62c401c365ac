"""The native backend: decoders like Llama, and mixtures of experts, in a small C++ library.

`supports` checks whether a model can be served here, `footprint` says what it takes, and
`NativeModel.load` loads it. A wheel may carry the library compiled (`levels.py`), else `compile.py`
compiles it on first use. `csrc/*.h` describe its memory layouts and invariants.
"""

from stonechat_models.backends.native.model import NativeModel
from stonechat_models.backends.native.support import footprint, supports

__all__ = ["NativeModel", "footprint", "supports"]
