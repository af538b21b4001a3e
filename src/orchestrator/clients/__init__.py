"""How we call others: agents, the ingress — one file per protocol.

It exports nothing itself, so that the command line gets the parser without the HTTP library.
"""
