"""Instruments that are ONNX files: embedders, a face detector and a tagger, all through one thin layer."""
