"""What the daemon counts, and the pages and tables that show it. Main thread."""
