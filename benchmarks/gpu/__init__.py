"""What can only be seen on a GPU, in pieces of under nine minutes: `python -m benchmarks.gpu`, or `make gpu`."""
