"""The one place where our expected errors become Temporal's. *Pure.*"""

from __future__ import annotations

from typing import NoReturn

from temporalio.exceptions import ApplicationError

from core.errors import GigafactoryError


def raise_activity_error(error: GigafactoryError) -> NoReturn:
    """Translate an expected error into Temporal's: the code is its type, and only retryable ones are retried."""
    raise ApplicationError(
        error.message, error.as_problem(), type=error.code, non_retryable=not error.retryable
    ) from error
