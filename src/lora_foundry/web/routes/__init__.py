"""The routes, one module a subject; each calls the engine or reads a run's folder, and none speaks SQL."""
