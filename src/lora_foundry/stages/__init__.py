"""The six stages of the pipeline, a module each, and what they share: scoring, proofs, pictures, the report."""
