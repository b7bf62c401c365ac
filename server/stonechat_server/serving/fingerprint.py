"""`system_fingerprint`: the same answer to the same seed is expected where it is the same."""

import hashlib

from stonechat_models import ModelInfo, __version__


def system_fingerprint(model: ModelInfo) -> str:
    """A hash of the version, the model and its weights, and of how they are computed."""
    device_kind = model.device.partition(":")[0]
    facts = (
        __version__,
        model.name,
        model.architecture,
        model.weights_hash,
        model.dtype,
        model.quantization,
        device_kind,
        model.backend,
        model.attention_backend,
    )
    return "fp_" + hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]
