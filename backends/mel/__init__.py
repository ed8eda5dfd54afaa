"""Log-mel features as Whisper takes them, from audio that is still arriving.

Read `spec` first (the numbers and tables), then `reference` (what is computed, in plain NumPy), `engine` (who computes
it) and `stream` (audio in pieces). Nothing is imported here: each part costs only those who use it.
"""
