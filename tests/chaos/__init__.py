"""Farms under load whose processes are killed, stopped and crashed by the thousand, and what it costs the living."""
