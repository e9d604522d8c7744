"""The stage `generate`; `step` is the stage, beside it only what it alone needs."""
