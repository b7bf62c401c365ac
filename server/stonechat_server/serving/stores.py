"""Opens what outlives a server: its ledger, and its files and batches."""

from stonechat_server.observability.ledger import Ledger, LedgerError
from stonechat_server.observability.ledger.location import AUTO, ledger_place
from stonechat_server.settings import Settings
from stonechat_server.storage.storage import Storage, StorageError, open_storage


def open_stores(settings: Settings) -> tuple[Ledger | None, Storage | None, list[str]]:
    """The ledger and the storage that the settings name, and why one is missing that is wanted.

    Raises `LedgerError` or `StorageError` if the server needs the one that does not open.
    """
    notes: list[str] = []
    ledger = storage = None
    try:
        if place := ledger_place(settings.ledger, settings.ledger_journal):
            ledger = Ledger(place.url, place.journal)
    except LedgerError as error:
        is_named = settings.ledger != AUTO or settings.ledger_journal is not None
        if is_named if settings.ledger_required is None else settings.ledger_required:
            raise
        notes.append(f"no usage is recorded: {error}")
    try:
        storage = open_storage(settings)
    except StorageError as error:
        if settings.files_dir is not None:
            raise
        notes.append(str(error))
    return ledger, storage, notes
