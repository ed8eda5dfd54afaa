"""What is known of a stream: from its handoff or request to its end. Records without decisions."""
