"""SDXL, and so Illustrious, Pony and NoobAI."""
