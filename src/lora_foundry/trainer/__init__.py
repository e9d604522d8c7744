"""The in-process trainer: a LoRA learned with nothing but torch and peft, for a CPU as for a GPU.

Start with `trainer` (the port's class, and how a job is prepared), then `loop` and `step`; `data` makes the batches,
`lora` the weights that learn, `state` what a checkpoint holds, `export` the file. `families/` has what differs between
kinds of models."""
