"""What machines share that have no folder in common: an object store (`LORA_FOUNDRY_STORAGE`), in which every file of a run
lies once, under the hash of its content, and a manifest says which files a run's folder holds. docs/decisions/0013-storage.md
says how it all fits together. Without that setting nothing in here is ever called."""
