"""What a server needs whoever speaks HTTP: whether it may start at all."""
