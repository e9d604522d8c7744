"""The command line: parses, calls, prints. Everything it can do, the Python API can do as well."""

from lora_foundry.cli.app import main

__all__ = ["main"]
