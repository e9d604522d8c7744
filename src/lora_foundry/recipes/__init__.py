"""The recipes that ship with the project, one TOML file each."""
