"""What passes between the planes: commands down, events up, scripts, and the responses inside commands."""
