"""Programs that stand beside the daemon: the demo, a handoff client, the test runner, the bench."""
