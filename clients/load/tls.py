"""How wss:// servers are verified."""

from __future__ import annotations

import ssl

from clients.load.plan import Plan
from feed.errors import TickcastError


def tls_context(plan: Plan) -> ssl.SSLContext:
    """A context as the plan wants it.

    Raises:
        TickcastError: the plan's file of certificates can't be used.
    """
    try:
        context = ssl.create_default_context(cafile=plan.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise TickcastError(f"{plan.ca_file}: {error}") from None
    if plan.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
