"""The usage ledger: who used what. Requests write to a journal, which feeds a database."""

from stonechat_server.observability.ledger.entry import LedgerEntry
from stonechat_server.observability.ledger.report import UsageRow, usage
from stonechat_server.observability.ledger.table import open_database
from stonechat_server.observability.ledger.writer import Ledger, LedgerError

__all__ = ["Ledger", "LedgerEntry", "LedgerError", "UsageRow", "open_database", "usage"]
