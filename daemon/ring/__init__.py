"""The io_uring kernel: memory (set-up, probing, registration) and enter (one system call per turn)."""
