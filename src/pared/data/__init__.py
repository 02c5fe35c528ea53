"""Tables: readers, tasks, encoding, splits; everything saved as plain JSON."""
