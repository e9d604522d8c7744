"""The stages of the pipeline, a package each: `step` is the stage, beside it only what it alone needs."""
