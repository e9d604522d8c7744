"""Base models: all that is special about one stands in a folder of its own, what several share in `_shared`."""

EXAMPLE = "example"
"""The family that is there to be copied: a test registers it, no list has it."""
