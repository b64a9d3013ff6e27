"""The router: one process that decides everything about a request and copies no client tensor."""
