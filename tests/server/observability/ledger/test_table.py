"""The tables derive from records, and a database of an earlier version must fit them."""

import pytest
import sqlalchemy as sa

from stonechat_server.observability.ledger.table import requests
from stonechat_server.storage.tables import batches, files

KEPT = {
    "requests": "id created request_id key model endpoint user? safety_identifier? status "
    "error_code? stream num_choices prompt_tokens cached_tokens completion_tokens finish_reasons "
    "queue_seconds? first_token_seconds? total_seconds prompt? completion?",
    "files": "id owner filename purpose num_bytes created expires_at? is_kept",
    "batches": "id owner endpoint model? input_file_id completion_window status created expires_at "
    "in_progress_at? finalizing_at? completed_at? failed_at? expired_at? cancelling_at? "
    "cancelled_at? output_id errors_id has_output has_errors output_lifetime? num_total "
    "num_completed num_failed input_tokens cached_tokens output_tokens reasoning_tokens problems? "
    "metadata?",
}
"""The columns in databases of version 0.2, with a mark behind those that may be null."""


@pytest.mark.parametrize("table", [requests, files, batches], ids=lambda table: table.name)
def test_the_columns_are_those_of_databases_that_exist(table: sa.Table) -> None:
    columns = " ".join(f"{one.name}{'?' if one.nullable else ''}" for one in table.columns)
    assert columns == KEPT[table.name]
