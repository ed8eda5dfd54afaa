"""The process and its environment: listening socket, signals, systemd, log, limits and exit codes. Main thread."""
