"""The error for a test that is wrong in itself, as against a service that is."""

from __future__ import annotations


class FakeMisused(AssertionError):
    """The test asked the fake for something that no farm does: a script for a model that is not there, an answer that
    does not fit the signature.

    No FarmError and no ValueError: what a service catches must not hide a fault of its test.
    """
