"""The load: agents, callers and readers that cost far less than what they measure."""
