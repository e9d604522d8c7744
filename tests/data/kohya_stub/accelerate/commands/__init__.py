"""Stands in for accelerate in the stub checkout."""
