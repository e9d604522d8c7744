"""What this project is about, as plain typed data: characters, recipes, shots, datasets, LoRAs. No IO, no torch."""
