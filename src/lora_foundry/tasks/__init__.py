"""The task engine: a table of tasks, workers that may die, and everything between them."""
