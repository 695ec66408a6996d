"""The bus of one process, held to the contract of all."""

from __future__ import annotations

import pytest

from tests.contracts.bus_contract import BusContract
from walstream.shell.channels.bus import Bus
from walstream.shell.channels.local_bus import LocalBus, LocalHub


class TestLocalBus(BusContract):
    @pytest.fixture(autouse=True)
    def _hub(self) -> None:
        self.hub = LocalHub()

    def make(self, name: str) -> Bus:
        return LocalBus(self.hub, name)

    def commit(self, pairs: list[tuple[str, str]]) -> None:
        for channel, payload in pairs:
            self.hub.notify(channel, payload)
