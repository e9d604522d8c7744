"""Base models: finding one by name, telling what it is without loading it, loading it, and encoding prompts
with it.

Generator and trainer meet here, so that both see the same base in the same way."""
