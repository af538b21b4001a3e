"""Real processes and sockets, from the outside."""
