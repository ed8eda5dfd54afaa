"""The process and the system around it: its socket, signals, systemd, log, limits and exit codes. Main thread."""
