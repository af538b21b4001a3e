"""One suite for each port, over every driver."""
