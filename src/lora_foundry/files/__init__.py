"""Files on disk: names, safe writing, locks, pictures."""
