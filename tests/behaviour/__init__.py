"""Behaviour of the whole daemon, as a process, over real sockets, on both kernels."""
