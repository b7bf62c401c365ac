"""Says why the Hugging Face hub did not return a model, and whether it can be asked at all."""

from stonechat_models.checkpoint.known.suggestions import did_you_mean
from stonechat_models.errors import ModelLoadError
from stonechat_models.model_file import reason_of

PROBE_SECONDS = 5.0


def is_reachable() -> bool:
    """Whether the hub answers at all. Without a network the library would try for half a minute.

    In the library's offline mode it is True: the library itself then asks nobody.
    """
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return True
    try:
        get_session().head(constants.ENDPOINT, timeout=PROBE_SECONDS)
    except Exception:  # of the HTTP library, which is not ours to know
        return False
    return True


def require_network() -> None:
    """Raise `ConnectionError` if the hub cannot be reached."""
    if not is_reachable():
        raise ConnectionError


def not_found(model: str, error: Exception) -> ModelLoadError:
    """Return the error for a model that the hub did not return: why, and what may be meant."""
    return ModelLoadError(
        f"{model} is not on this machine, and {_reason(model, error)}{did_you_mean(model)}"
    )


def _reason(model: str, error: Exception) -> str:
    from huggingface_hub import constants, errors

    match error:
        case errors.GatedRepoError():
            page = f"{constants.ENDPOINT}/{'/'.join(model.split('/')[:2])}"
            return f"its owner asks for consent: give it at {page}, then log in (`hf auth login`)"
        case errors.RepositoryNotFoundError():
            return "the Hugging Face hub has no such model, or not for you (`hf auth login`)"
        case errors.RevisionNotFoundError():
            return "the Hugging Face hub has no such revision of it"
        case errors.RemoteEntryNotFoundError():
            return "the Hugging Face hub has no such file"
        case errors.NotASafetensorsRepoError():
            return "the Hugging Face hub has no safetensors of it"
        case errors.HFValidationError():
            return "it is no name of the Hugging Face hub"
        case errors.LocalEntryNotFoundError() | ConnectionError():  # also those of offline mode
            if constants.HF_HUB_OFFLINE:
                return "the variable HF_HUB_OFFLINE is set, so the Hugging Face hub is not asked"
            return "there is no network: the Hugging Face hub cannot be reached"
        case FileNotFoundError():
            return "the Hugging Face hub has no such file, or not for you (`hf auth login`)"
    return f"the Hugging Face hub did not return it: {reason_of(error)}"
