"""`system_fingerprint`: while it is the same, the same seed should give the same answer."""

import hashlib

from stonechat_models import AdapterInfo, ModelInfo, __version__


def system_fingerprint(model: ModelInfo, adapter: AdapterInfo | None = None) -> str:
    """A hash of the version, the model, its weights and the way they are computed.

    `adapter`: the one that is computed beside the model.
    """
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
        *(() if adapter is None else (adapter.weights_hash,)),
    )
    return "fp_" + hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]
