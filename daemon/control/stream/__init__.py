"""Records of a stream, from its handoff or request to its end. They hold no decisions."""
