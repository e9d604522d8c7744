"""A family to copy: a flow-matching transformer of four thousand numbers, with everything that a real one has to say and
nothing else. It is not in the list of families (`families.EXAMPLE`); a test registers it, trains it and draws with it, and
does the same with a copy of this folder, as docs/adding-a-family.md tells it."""
