"""Independent computations in fp64 and plain loops. Nothing here imports the package."""
