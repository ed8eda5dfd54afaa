"""The epoll kernel: the same submissions and completions, served with non-blocking system calls."""
