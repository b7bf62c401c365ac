"""The tables of files and batches. They lie in the ledger's database, if there is one."""

import sqlalchemy as sa

metadata = sa.MetaData()

files = sa.Table(
    "files",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("owner", sa.String(64), nullable=False, index=True),
    sa.Column("filename", sa.Text, nullable=False),
    sa.Column("purpose", sa.String(32), nullable=False),
    sa.Column("num_bytes", sa.BigInteger, nullable=False),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("expires_at", sa.BigInteger),
    # False while the content is put in place, and again once it is to be deleted.
    sa.Column("is_kept", sa.Boolean, nullable=False),
)

batches = sa.Table(
    "batches",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("owner", sa.String(64), nullable=False, index=True),
    sa.Column("endpoint", sa.Text, nullable=False),
    sa.Column("model", sa.Text),
    sa.Column("input_file_id", sa.String(64), nullable=False, index=True),
    sa.Column("completion_window", sa.String(16), nullable=False),
    sa.Column("status", sa.String(16), nullable=False, index=True),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=False),
    sa.Column("in_progress_at", sa.BigInteger),
    sa.Column("finalizing_at", sa.BigInteger),
    sa.Column("completed_at", sa.BigInteger),
    sa.Column("failed_at", sa.BigInteger),
    sa.Column("expired_at", sa.BigInteger),
    sa.Column("cancelling_at", sa.BigInteger),
    sa.Column("cancelled_at", sa.BigInteger),
    # The ids are chosen with the batch, so that its end can be repeated after a kill.
    sa.Column("output_id", sa.String(64), nullable=False),
    sa.Column("errors_id", sa.String(64), nullable=False),
    sa.Column("has_output", sa.Boolean, nullable=False),
    sa.Column("has_errors", sa.Boolean, nullable=False),
    sa.Column("output_lifetime", sa.BigInteger),
    sa.Column("num_total", sa.BigInteger, nullable=False),
    sa.Column("num_completed", sa.BigInteger, nullable=False),
    sa.Column("num_failed", sa.BigInteger, nullable=False),
    sa.Column("input_tokens", sa.BigInteger, nullable=False),
    sa.Column("cached_tokens", sa.BigInteger, nullable=False),
    sa.Column("output_tokens", sa.BigInteger, nullable=False),
    sa.Column("reasoning_tokens", sa.BigInteger, nullable=False),
    sa.Column("problems", sa.Text),  # a JSON list of objects: what is wrong with the input
    sa.Column("metadata", sa.Text),  # a JSON object of strings
)
