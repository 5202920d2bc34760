"""The whole way from a checkpoint to a bundle that is proven on its target."""
