"""Tokens and API keys become claims."""
