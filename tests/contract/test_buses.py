"""Every bus keeps the bus's contract."""

import pytest

from orchestrator.buses.local import LocalBus
from orchestrator.ports import Bus
from orchestrator.testing.bus_contract import BusContract


class TestLocalBus(BusContract):
    @pytest.fixture
    def bus(self) -> Bus:
        return LocalBus()
