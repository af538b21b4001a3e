"""How a sleeper is woken: hints and live frames, never truth."""
