"""`python -m lora_foundry` is the same program as `lora-foundry`."""

from lora_foundry.cli.app import main

main()
