"""The client library: what a service imports. It needs numpy, pyzmq and msgspec, and nothing of the farm itself."""

from __future__ import annotations

import logging

from farm.client.aio import AsyncClient
from farm.client.lease import AsyncLease, Lease
from farm.client.reply import Batch, Reply
from farm.client.sync import Client
from farm.client.tickets import Ticket
from shm.client import Model

logging.getLogger("farm").addHandler(logging.NullHandler())

__all__ = ["AsyncClient", "AsyncLease", "Batch", "Client", "Lease", "Model", "Reply", "Ticket"]
