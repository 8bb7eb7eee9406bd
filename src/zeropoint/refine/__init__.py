"""The integers are fixed; what stands beside them as floats is tuned so that the layer's output comes nearer."""
