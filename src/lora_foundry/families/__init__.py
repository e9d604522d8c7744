"""Base models: all that is special about one stands in a folder of its own, what several share in `_shared`."""
