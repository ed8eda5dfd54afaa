"""The data plane's state machine: pure, compiled, and walked by the loop. Nothing here makes a system call."""
