"""One module for each contender; each runs in an environment of its own.

Each has ``ENVIRONMENT``, its pinned packages; ``ROWS``, what is measured; ``prepare``, from
checkpoint to files; and ``Contender``, which answers. Libraries are imported inside functions: the
command reads the constants in an environment that has none of them.
"""
