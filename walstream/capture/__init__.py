"""Which committed changes leave the database at all: the table realtime.subscriptions as a plan."""
