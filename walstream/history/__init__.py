"""The bounded ring of recent transactions, positions, and which transactions are live for whom."""
