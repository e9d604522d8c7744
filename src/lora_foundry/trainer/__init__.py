"""The in-process trainer: a LoRA learned with nothing but torch and peft, for a CPU as for a GPU.

`trainer` is the port's class and the place to start reading; `families/` holds what differs between kinds of
models."""
