"""The daemon's counters, and the pages and tables that show them. Main thread."""
