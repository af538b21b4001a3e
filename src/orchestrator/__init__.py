"""The orchestrator: one plane in front of agents, with a log of everything they do."""

__version__ = "0.1.0"
__all__ = ["__version__"]
