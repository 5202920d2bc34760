"""Stage 2: from graphs to engines on the device that will run them."""
