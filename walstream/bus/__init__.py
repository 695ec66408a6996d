"""What nodes tell each other: items, their envelopes and the seal around them. Who carries them is the shell's work."""
