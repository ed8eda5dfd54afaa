"""What the daemon counts, and the pages that show it. Main thread."""
