"""What a run tells: a table for a terminal, one HTML page, a card."""
