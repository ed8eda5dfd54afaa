"""The control plane: Python on uvloop. It looks at a stream once when it begins and once when it ends."""
