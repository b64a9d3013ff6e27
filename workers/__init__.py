"""The workers: one process each, one warm ONNX Runtime session each; reads slots in place, writes outputs in place."""
