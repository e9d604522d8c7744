"""Miniature cartoon world that teaches the bundled tiny diffusion model what its tags mean.

The world exists so that the whole tool can be tried, tested and demonstrated without a download: it draws
labelled pictures of little people, writes tag captions for them, and trains the networks shipped with the
package. Nothing in the runtime package imports it.
"""
