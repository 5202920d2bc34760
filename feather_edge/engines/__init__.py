"""Stage 2: engines of a bundle's graphs, built where they will run."""
