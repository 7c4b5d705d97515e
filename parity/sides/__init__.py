"""The twins, NumPy's network and the published code behind one protocol."""
