"""The real engine in a world of its own: virtual time, a store that forgets, people who hang up."""

from orchestrator.testing.simulator.simulation import Result, simulate

__all__ = ["Result", "simulate"]
