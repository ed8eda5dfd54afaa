"""The benchmark harness: plays Apache and the browsers against a handoff daemon, and checks what arrives."""
