"""What is around the server where it is installed: the proxy in front, and the supply chain."""
