"""Stage 3: what a robot imports."""
