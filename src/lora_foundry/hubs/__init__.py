"""Giving a published LoRA to others: gathered once, then sent to the Hugging Face hub or written as a zip file."""
