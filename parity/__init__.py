"""Compares the twins and names what differs; and does so for networks of your own: compare_modules, record, tap."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parity.networks.compare import compare_modules
    from parity.networks.network import tap
    from parity.networks.record import record

__all__ = ["compare_modules", "record", "tap"]


def __getattr__(name: str) -> Any:
    """Import what strangers use when they use it: importing `parity` imports no framework and no MT3."""
    import importlib

    homes = {
        "compare_modules": "parity.networks.compare",
        "record": "parity.networks.record",
        "tap": "parity.networks.network",
    }
    if name not in homes:
        raise AttributeError(f"module 'parity' has no attribute {name!r}")
    return getattr(importlib.import_module(homes[name]), name)
