"""WAL messages of an output plugin become Begin, Change, Commit and Message values."""
