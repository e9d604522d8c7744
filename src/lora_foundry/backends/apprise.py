"""Sends news by Apprise: one address a service, more than a hundred services, no code of ours for any of them."""

from __future__ import annotations

from lora_foundry.domain.news import News
from lora_foundry.errors import BackendError, InputError
from lora_foundry.extras import missing_package

try:
    import apprise
    from apprise import Apprise, NotifyType
except ImportError as error:
    raise missing_package("LORA_FOUNDRY_NOTIFY", error) from error


class AppriseNotifier:
    """Sends to all addresses. Raises InputError for one that Apprise does not know."""

    def __init__(self, addresses: str) -> None:
        self._services = Apprise()
        for number, address in enumerate(addresses.split(), 1):
            if not self._services.add(address):  # the address itself holds secrets and is never shown
                raise InputError(
                    f"Address {number} of LORA_FOUNDRY_NOTIFY is none that Apprise {apprise.__version__} knows."
                )

    def notify(self, news: News) -> None:
        """See ports.Notifier. A picture that a service does not take is left out by Apprise itself."""
        kind = NotifyType.FAILURE if news.failed else NotifyType.SUCCESS
        attach = None if news.picture is None else str(news.picture)
        if not self._services.notify(body=news.text, title=news.title, notify_type=kind, attach=attach):
            raise BackendError("Not every address of LORA_FOUNDRY_NOTIFY took the message.")
